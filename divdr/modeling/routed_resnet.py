"""ResNets whose 3×3 convolutions are chosen for each image (Ramachandran & Le, Section 4.2.2).

They stand where Detectron2's ResNets do: the same maps, the same names of all other weights.
N images, C channels, E experts of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, ResNet
from torch import Tensor, nn

from ..checkpoint.resnet_names import detectron2_resnet_names, resnet_blocks, split_resnet_name
from ..config import SEVERAL_TASKS
from ..errors import CheckpointError, ConfigError
from ..moe import (
    Context,
    Decision,
    Gating,
    Router,
    RoutingLayer,
    anneal_k,
    build_expert,
    number_decisions,
)
from ..settings import RoutedResNetSettings
from .backbone import norm_factory
from .expert_record import ExpertRecord, LastRecord
from .neck import fpn_over

_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}

MakeLayer = Callable[[int, int], RoutingLayer]
"""Makes the experts of a block, and their gate, from its inner channels and its dilation."""


class RoutedBottleneck(BottleneckBlock):
    """Detectron2's bottleneck block with a routing layer in place of its 3×3 convolution.

    Args:
        in_channels: of its input.
        out_channels: of its output.
        make_layer: makes the routing layer, which becomes ``conv2``.
        arguments: of Detectron2's block; ``stride`` is 1, or lies in the first convolution.
    """

    conv2: RoutingLayer

    def __init__(
        self, in_channels: int, out_channels: int, *, make_layer: MakeLayer, **arguments: Any
    ) -> None:
        super().__init__(in_channels, out_channels, **arguments)
        inner = arguments["bottleneck_channels"]
        self.conv2 = make_layer(inner, arguments.get("dilation", 1))

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, Gating]:
        """(N, C, H, W) → (N, C', H', W'), and what was decided."""
        inner, gating = self.conv2(F.relu(self.conv1(x)), context)
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return F.relu(self.conv3(inner) + shortcut), gating


class RoutedResNet(ResNet):
    """Detectron2's ResNet, some of whose blocks choose experts for each image.

    An expert runs on the images that chose it and on no others, in training too. An image's result
    does not depend on the other images of its batch, if all are of one size: where a model pads
    smaller ones to the largest, GroupNorm and the gates see the padding.

    Args:
        stem: images to maps of stride 4.
        stages: blocks of res2, res3, …
        out_features: names of the maps to return.
        freeze_at: stages that do not train, as Detectron2 counts; they hold no routed blocks.
        tasks: T; batches are of one task, see :attr:`task`.
        task_width: numbers in a task's embedding; 0: gates look at none.

    Attributes:
        task: number of the present batch's task; whoever has several sets it before a forward.
        leaves_parameters_out: experts that no image of a batch chooses get no gradient, and DDP has
            to look for them.
    """

    leaves_parameters_out = True

    def __init__(
        self,
        stem: CNNBlockBase,
        stages: list[list[CNNBlockBase]],
        *,
        out_features: list[str],
        freeze_at: int = 0,
        tasks: int = 1,
        task_width: int = 0,
    ) -> None:
        super().__init__(stem, stages, out_features=out_features, freeze_at=freeze_at)
        self.task = 0
        self.embedding = nn.Embedding(tasks, task_width) if task_width else None
        self._decisions = number_decisions(
            [(name, block.conv2.names) for name, block in self._routed_blocks()]
        )
        self._last: LastRecord[ExpertRecord] = LastRecord()

    def _routed_blocks(self) -> Iterator[tuple[str, RoutedBottleneck]]:
        for name, module in self.named_modules():
            if isinstance(module, RoutedBottleneck):
                yield name, module

    @property
    def expert_decisions(self) -> tuple[Decision, ...]:
        """Of its routed blocks, one each."""
        return self._decisions

    @property
    def expert_record(self) -> ExpertRecord | None:
        """Of this thread's last forward."""
        return self._last.record

    def forget_experts(self) -> None:
        """Drop the record of the last forward."""
        self._last.record = None

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Normalised images (N, C, H, W) → {"res2": (N, C, H/4, W/4), …}."""
        size = (x.shape[-2], x.shape[-1])
        context = self._context(x)
        outputs, decided = {}, []
        x = self.stem(x)
        if "stem" in self._out_features:
            outputs["stem"] = x
        for name in self.stage_names:
            for block in getattr(self, name):
                if isinstance(block, RoutedBottleneck):
                    x, gating = block(x, context)
                    decided.append(gating)
                else:
                    x = block(x)
            if name in self._out_features:
                outputs[name] = x
        ran = [gating.chosen for gating in decided] or [x.new_zeros((len(x), 0)).bool()]
        self._last.record = ExpertRecord(
            [g.weights for g in decided], [g.load for g in decided], torch.cat(ran, 1), size
        )
        return outputs

    def _context(self, x: Tensor) -> Context:
        tasks = torch.full((len(x),), self.task, dtype=torch.int64, device=x.device)
        if self.embedding is None:
            return Context(tasks, x.new_zeros((len(x), 0)))
        return Context(tasks, self.embedding(tasks))

    def own_names(
        self, path: str, weights: Mapping[str, Tensor], prefix: str
    ) -> dict[str, Tensor] | None:
        """Weights of an ordinary ResNet under the names that they have here.

        A 3×3 convolution and its normalisation go to each expert that is one. Weights of anything
        else in the file stay as they are.

        Args:
            path: of the file, for errors.
            weights: under Detectron2's names, torchvision's or Caffe2's.
            prefix: of this ResNet's weights in the model.

        Returns:
            None if there are none, or if they are of a routed ResNet already.

        Raises:
            CheckpointError: the ResNet is of another depth.
        """
        named = detectron2_resnet_names(weights)
        blocks = resnet_blocks(named)
        if not blocks or any(".conv2.experts." in name for name in named):
            return None
        own = [len(getattr(self, name)) for name in self.stage_names]
        if blocks[: len(own)] != own:
            raise CheckpointError(
                f"checkpoint {path} holds a ResNet of {_listed(blocks)} blocks, and the model's "
                f"has {_listed(own)}: set MODEL.RESNETS.DEPTH as it was"
            )
        routed = dict(self._routed_blocks())
        result = {}
        for name, value in named.items():
            parts = split_resnet_name(name)
            if parts is None:
                result[name] = value
                continue
            block, found, rest = parts[1].partition(".conv2.")
            for target in self._targets(routed[block], rest) if block in routed else [rest]:
                result[f"{prefix}{block}{found}{target}"] = value
        return result

    @staticmethod
    def _targets(block: RoutedBottleneck, rest: str) -> list[str]:
        """Places of a 3×3 convolution's weight, or its normalisation's, among the experts."""
        layer = 1 if rest.startswith("norm.") else 0
        names = enumerate(block.conv2.names)
        last = rest.removeprefix("norm.")
        return [f"experts.{i}.0.{layer}.{last}" for i, name in names if name == "conv_3x3"]


def _listed(blocks: list[int]) -> str:
    return ", ".join(map(str, blocks))


@BACKBONE_REGISTRY.register()
def build_routed_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> RoutedResNet:
    """``RoutedResNet`` by ``MODEL.ROUTED_RESNET`` and ``MODEL.RESNETS``.

    Of the latter DEPTH, channels, STRIDE_IN_1X1, RES5_DILATION and OUT_FEATURES count; NORM is that
    of the former. Frozen stages (``MODEL.BACKBONE.FREEZE_AT``) stay plain, as a gate that does not
    learn chooses by chance.

    Raises:
        ConfigError: depth, groups or deformable convolutions are none that it has, or k is above
            the number of experts.
    """
    resnets = cfg.MODEL.RESNETS
    stem = BasicStem(input_shape.channels, resnets.STEM_OUT_CHANNELS, _norm(cfg))
    dilations = (1, 1, 1, resnets.RES5_DILATION)
    return _routed_resnet(cfg, stem, dilations, (1, 1, 1))


@BACKBONE_REGISTRY.register()
def build_routed_resnet_deeplab_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> RoutedResNet:
    """The same as DeepLab has it: its stem, dilation of res4, and a multi-grid in res5.

    Keys are those of Detectron2's project of that name: ``MODEL.RESNETS`` STEM_TYPE, RES4_DILATION,
    RES5_DILATION and RES5_MULTI_GRID. Experts of all sizes are dilated; average pooling and squeeze
    and excitation cannot be.

    Raises:
        ConfigError: the project is not there, or see :func:`build_routed_resnet_backbone`.
    """
    try:
        from detectron2.projects.deeplab.resnet import DeepLabStem
    except ImportError as error:
        raise ConfigError(
            "MODEL.BACKBONE.NAME build_routed_resnet_deeplab_backbone needs the project deeplab "
            f"beside Detectron2 ({error})"
        ) from None
    resnets = cfg.MODEL.RESNETS
    kinds = {"basic": BasicStem, "deeplab": DeepLabStem}
    if resnets.STEM_TYPE not in kinds:
        raise ConfigError(
            f"MODEL.RESNETS.STEM_TYPE must be one of {', '.join(kinds)}, not {resnets.STEM_TYPE!r}"
        )
    make = kinds[resnets.STEM_TYPE]
    stem = make(input_shape.channels, resnets.STEM_OUT_CHANNELS, _norm(cfg))
    dilations = (1, 1, resnets.RES4_DILATION, resnets.RES5_DILATION)
    return _routed_resnet(cfg, stem, dilations, tuple(resnets.RES5_MULTI_GRID))


@BACKBONE_REGISTRY.register()
def build_routed_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """``RoutedResNet`` under Detectron2's FPN, by ``MODEL.FPN``, with a pooled "p6".

    Raises:
        ConfigError: a named map does not exist, or see :func:`build_routed_resnet_backbone`.
    """
    return fpn_over(cfg, build_routed_resnet_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_routed_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The same with "p6" and "p7" convolved from "res5", as RetinaNet has it.

    Raises:
        ConfigError: a named map does not exist, or see :func:`build_routed_resnet_backbone`.
    """
    bottom_up = build_routed_resnet_backbone(cfg, input_shape)
    channels = bottom_up.output_shape()["res5"].channels
    return fpn_over(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS))


def _norm(cfg: CfgNode) -> Callable[[int], nn.Module]:
    return norm_factory(RoutedResNetSettings.of(cfg.MODEL.ROUTED_RESNET).norm)


def _routed_resnet(
    cfg: CfgNode,
    stem: CNNBlockBase,
    dilations: tuple[int, int, int, int],
    multi_grid: tuple[int, ...],
) -> RoutedResNet:
    settings = RoutedResNetSettings.of(cfg.MODEL.ROUTED_RESNET)
    resnets, frozen = cfg.MODEL.RESNETS, cfg.MODEL.BACKBONE.FREEZE_AT
    _check(settings, resnets, dilations, multi_grid)
    last = max({"res3": 2, "res4": 3, "res5": 4}.get(name, 1) for name in resnets.OUT_FEATURES)
    counts = _BLOCKS[resnets.DEPTH][:last]
    several = cfg.MODEL.META_ARCHITECTURE == SEVERAL_TASKS
    tasks = len(cfg.MODEL.MULTI_TASK.ARCHITECTURES) if several else 1
    width = settings.task_width if tasks > 1 and "task" in settings.router else 0

    plan = []  # (stage, block, stride, dilation, whether it is routed) of every block
    for stage, count in enumerate(counts):
        for block in range(count):
            dilation = dilations[stage]
            stride = 2 if stage and not block and dilation == 1 else 1
            # Detectron2's multi-grid is that of the three blocks of res5.
            dilation *= multi_grid[block % len(multi_grid)] if stage == 3 else 1
            downsamples = stride == 2 and not resnets.STRIDE_IN_1X1
            plan.append((stage, block, stride, dilation, stage + 2 > frozen and not downsamples))
    ks = iter(anneal_k(settings.k_first, settings.k_last, sum(routed for *_, routed in plan)))
    norm = _norm(cfg)
    inner, outer, channels = resnets.WIDTH_PER_GROUP, resnets.RES2_OUT_CHANNELS, stem.out_channels
    stages: list[list[CNNBlockBase]] = [[] for _ in counts]
    for stage, _, stride, dilation, routed in plan:
        arguments = {
            "bottleneck_channels": inner * 2**stage,
            "stride": stride,
            "norm": norm,
            "stride_in_1x1": resnets.STRIDE_IN_1X1,
            "dilation": dilation,
        }
        out = outer * 2**stage
        if routed:
            k = next(ks)

            def make(width_inside: int, dilated: int, k: int = k) -> RoutingLayer:
                return _layer(settings, width, width_inside, dilated, k)

            stages[stage].append(RoutedBottleneck(channels, out, make_layer=make, **arguments))
        else:
            stages[stage].append(BottleneckBlock(channels, out, **arguments))
        channels = out
    return RoutedResNet(
        stem,
        stages,
        out_features=list(resnets.OUT_FEATURES),
        freeze_at=frozen,
        tasks=tasks,
        task_width=width,
    )


def _check(
    settings: RoutedResNetSettings,
    resnets: CfgNode,
    dilations: tuple[int, ...],
    multi_grid: tuple[int, ...],
) -> None:
    count = len(settings.experts)
    for name in ("k_first", "k_last"):
        value = getattr(settings, name)
        if value > count:
            raise ConfigError(
                f"{settings.KEY}.{name.upper()} is {value}, but there are {count} EXPERTS"
            )
    if "linear" in settings.experts:
        raise ConfigError(f'{settings.KEY}.EXPERTS: "linear" is for vectors, not for maps')
    if len(settings.balance_weight) != 2:
        raise ConfigError(
            f"{settings.KEY}.BALANCE_WEIGHT is two numbers, at the start and at the end, not "
            f"{len(settings.balance_weight)}"
        )
    if resnets.DEPTH not in _BLOCKS:
        known = ", ".join(map(str, _BLOCKS))
        raise ConfigError(
            f"routed ResNets have bottlenecks, MODEL.RESNETS.DEPTH {known}, not {resnets.DEPTH}"
        )
    if resnets.NUM_GROUPS != 1 or any(resnets.DEFORM_ON_PER_STAGE):
        raise ConfigError(
            "routed ResNets have neither groups nor deformable convolutions: MODEL.RESNETS."
            "NUM_GROUPS must be 1 and DEFORM_ON_PER_STAGE False everywhere"
        )
    if any(dilation not in (1, 2, 4) for dilation in dilations) or not multi_grid:
        raise ConfigError(
            "MODEL.RESNETS.RES4_DILATION and RES5_DILATION must be 1, 2 or 4, and RES5_MULTI_GRID "
            "hold at least one number"
        )


def _layer(
    settings: RoutedResNetSettings, task_width: int, channels: int, dilation: int, k: int
) -> RoutingLayer:
    norm = norm_factory(settings.norm)
    experts: dict[str, nn.Module] = {}
    made = []
    for name in settings.experts:
        expert = build_expert(name, channels, norm, convolutions=1)
        for module in expert.modules():
            if isinstance(module, nn.Conv2d):
                weight_init.c2_msra_fill(module)
                _dilate(module, dilation)
        if isinstance(expert, nn.MaxPool2d) and dilation > 1:
            # It pads by half of its window at most, whatever its dilation.
            pooling = nn.MaxPool2d(expert.kernel_size, stride=1, dilation=dilation)
            expert = nn.Sequential(nn.ConstantPad2d(dilation, -torch.inf), pooling)
        # Those of one name start equal.
        expert.load_state_dict(experts.setdefault(name, expert).state_dict())
        made.append(expert)
    router = Router(settings.router, channels, task_width, len(made), k, settings.noise)
    return RoutingLayer(made, settings.experts, router)


def _dilate(layer: nn.Conv2d, dilation: int) -> None:
    """Spread a window; the map keeps its size."""
    layer.padding = tuple(dilation * int(side) for side in layer.padding)
    layer.dilation = tuple(dilation * side for side in layer.dilation)
