"""A single-gated mixture as a segmentation head, made from the head of a finished model.

"Revisiting single-gated Mixtures of Experts" (Royer et al.): the base looks at every image. An
image, or a window of it, that it is not sure of goes to the expert that the gate names.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY, build_backbone
from torch import Tensor, nn

from ...errors import ConfigError
from ...moe import (
    Cost,
    call_macs,
    choose_by,
    log_mean_probability,
    run_groups,
    scatter_sum,
    smoothed,
    weighted_mean,
    without_data,
)
from ...settings import SegmentationSingleGateSettings
from ..attach import unwrap
from ..single_gate_head import SingleGateHead
from .backbone_tail import BackboneTail, Recollection, Recorder, TailExpert
from .windows import Windows


@SEM_SEG_HEADS_REGISTRY.register()
class SingleGateSegmentor(SingleGateHead):
    """The finished head, then for images or windows that it doubts copies of it.

    A row of the mixture is an image or a window. Its embedding is the mean, over the row, of the
    map that the base's ``predictor`` sees; its confidence the mean over the pixels of the largest
    probability. Probabilities of base and expert are averaged; where no expert runs, logits are
    exactly the base's.

    Args:
        base: the finished head, from features by name to logits (N, C, H, W) in evaluation, with a
            convolution called ``predictor``.
        strides: of the features that it takes, by name.
        experts: K.
        settings: see there.
        tails: for each expert the end of the backbone that it has of its own, if it has one.
        ignore_value: label that is left out of the loss.
        max_iter: iterations of the whole training.
        seed: of K-means.

    Attributes:
        ran: (N, K) of the last evaluated batch, the share of each image's rows that ran.
        macs: (N,) multiply-adds of base, gate and experts for each of its images.

    Raises:
        ConfigError: the base has no ``predictor``, or cannot see windows.
    """

    @configurable
    def __init__(
        self,
        *,
        base: nn.Module,
        strides: Mapping[str, int],
        experts: int,
        settings: SegmentationSingleGateSettings,
        tails: Sequence[BackboneTail] = (),
        ignore_value: int = 255,
        max_iter: int = 1,
        seed: int = 0,
    ) -> None:
        predictor = getattr(base, "predictor", None)
        if not isinstance(predictor, nn.Conv2d):
            raise ConfigError(
                f"the segmentation head {type(base).__name__} has no convolution called predictor, "
                "whose input rows are clustered by"
            )
        if settings.window and any(getattr(m, "pool_kernel_size", None) for m in base.modules()):
            raise ConfigError(
                f"{type(base).__name__} pools over maps of the training crops, which windows are "
                f"smaller than: set {settings.KEY}.WINDOW 0, or INPUT.CROP.ENABLED False"
            )
        if settings.window and tails:
            raise ConfigError(
                f"{settings.KEY}.BACKBONE_FROM is for rows that are whole images: set WINDOW 0"
            )
        super().__init__(predictor.in_channels, experts, settings, max_iter, seed)
        self.base = base
        heads = [copy.deepcopy(base) for _ in range(experts)]
        self.experts = nn.ModuleList(
            [TailExpert(*pair) for pair in zip(tails, heads, strict=True)] if tails else heads
        )
        self._recorder: Recorder | None = None
        self.num_classes = predictor.out_channels
        self.strides = dict(strides)
        self.ignore_value = ignore_value
        self.ran: Tensor | None = None
        self.macs: Tensor | None = None
        self._costs: dict[tuple[int, ...], Cost] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Arguments from ``cfg.MODEL.SEM_SEG_HEAD``, whose other keys describe the base."""
        head = cfg.MODEL.SEM_SEG_HEAD
        settings = SegmentationSingleGateSettings.of(head.SINGLE_GATE)
        names = [name for name in input_shape if name in head.IN_FEATURES]
        tails = []
        if settings.backbone_from:
            tail = BackboneTail(build_backbone(cfg), settings.backbone_from)
            tails = [copy.deepcopy(tail) for _ in range(settings.experts)]
        return {
            "base": SEM_SEG_HEADS_REGISTRY.get(settings.base_head)(cfg, input_shape),
            "strides": {name: input_shape[name].stride or 1 for name in names},
            "experts": settings.experts,
            "settings": settings,
            "tails": tails,
            "ignore_value": head.IGNORE_VALUE,
            "max_iter": cfg.SOLVER.MAX_ITER,
            "seed": max(0, cfg.SEED),
        }

    def own_parts(self) -> Iterator[nn.Module]:
        """Gate and experts."""
        yield self.gate
        yield self.experts

    def copy_base(self, backbone: nn.Module) -> None:
        """Start every expert from the weights of the base, and of the backbone before it."""
        for expert in self.experts:
            if isinstance(expert, TailExpert):
                expert.tail.take(backbone)
                expert = expert.head
            expert.load_state_dict(self.base.state_dict())

    def attach(self, model: nn.Module) -> None:
        """Note from now on what the parts of the backbone give that experts have in common."""
        tails = [e.tail for e in self.experts if isinstance(e, TailExpert)]
        if tails:
            self._recorder = Recorder(model.get_submodule("backbone"), tails[0].before)

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Training: (None, losses); evaluation: (logits (N, C, H, W), {}).

        Losses are ``loss_gate``, then ``loss_experts``: each expert's mean over the rows of all
        processes of their mean cross-entropy, weighted by clip(g₀, γ, 1); the sum over experts.

        Args:
            features: maps of the backbone by name.
            targets: (N, H, W) labels, in training.

        Raises:
            ConfigError: in training, no clusters were made, see ``begin``.
        """
        assert isinstance(self.settings, SegmentationSingleGateSettings)
        rows = Windows.over(features, self.strides, self.settings.window, self.settings.halo)
        logits, seen = self._base(features)
        z = rows.means(seen.float(), rows.per_cell(features, seen))
        pixels = rows.per_cell(features, logits)
        if not self.training:
            return self._evaluate(features, logits, z, rows, pixels), {}
        assert targets is not None, "training a segmentation head needs labels"
        return None, self._losses(features, z, self._labels(targets, rows, pixels), rows)

    @torch.no_grad()
    def _base(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The base's logits (N, C, H, W), and what its predictor saw."""
        seen: list[Tensor] = []
        predictor = self.base.get_submodule("predictor")
        hook = predictor.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
        try:
            logits, _ = self.base.eval()(features)
        finally:
            hook.remove()
        return logits, seen[-1]

    def _given(
        self, features: dict[str, Tensor], rows: Windows, own: Tensor
    ) -> dict[str, Tensor] | Recollection:
        """What experts get of the rows ``own`` (R,)."""
        tails = any(isinstance(expert, TailExpert) for expert in self.experts)
        return self._recalled.at(own) if tails else rows.cut(features, own)

    @staticmethod
    def _logits(expert: nn.Module, given: Any, rows: Windows) -> Tensor:
        """An expert's logits (R, C, h, w), without the rows' halo."""
        # Heads return losses where they train; its layers keep their mode.
        training, expert.training = expert.training, False
        try:
            logits, _ = expert(given)
        finally:
            expert.training = training
        if isinstance(expert, TailExpert):
            return logits
        return rows.inner(logits, rows.per_cell(given, logits))

    @property
    def _recalled(self) -> Recollection:
        if self._recorder is None:
            raise ConfigError("the experts begin in the backbone: freeze_around_mixtures(model)")
        return self._recorder.last

    def _labels(self, targets: Tensor, rows: Windows, pixels: int) -> Tensor:
        """(R, h, w) classes of each row's pixels; -1 without label, and beyond the image."""
        labels = targets[:, None].long()
        labels = labels.masked_fill((labels < 0) | (labels == self.ignore_value), -1)
        return rows.of(labels + 1, pixels)[:, 0] - 1

    def _losses(
        self, features: dict[str, Tensor], z: Tensor, labels: Tensor, rows: Windows
    ) -> dict[str, Tensor]:
        known = (labels >= 0).flatten(1).float().mean(1)
        some = known > 0  # the others may be padding
        if self.collects(z[some]):
            return {}
        gates = self.gate.initial(z)
        if self.stage == "gate":
            return {"loss_gate": self.gate_loss(z, gates, some)}
        every = torch.arange(len(z), device=z.device)
        features = {name: features[name].detach() for name in self.strides}
        given = self._given(features, rows, every)
        terms = []
        for number, expert in enumerate(self.experts):
            logits = self._logits(expert, given, rows).float()
            each = F.cross_entropy(logits, labels, ignore_index=-1, reduction="none")
            each = each.flatten(1).mean(1) / known.clamp_min(1e-12)
            weights = smoothed(gates[:, number], self.settings.floor) * known
            terms.append(weighted_mean(each, weights))
        return {"loss_experts": torch.stack(terms).sum()}

    def _evaluate(
        self, features: dict[str, Tensor], logits: Tensor, z: Tensor, rows: Windows, pixels: int
    ) -> Tensor:
        chosen = torch.zeros((len(z), len(self.experts)), dtype=torch.bool, device=z.device)
        if self.gate.is_fitted:
            largest = logits.float().softmax(1).amax(1, keepdim=True)
            sure = rows.means(largest, pixels)[:, 0]
            gate = self.gate(z).float().softmax(1)
            choice = choose_by(self.settings, gate, sure, self.threshold)
            chosen = choice.chosen
            every = torch.arange(len(z), device=z.device)
            runs = [partial(self._run, expert, features, rows) for expert in self.experts]
            groups = list(run_groups(runs, every, chosen))
            if groups:
                parts = rows.of(logits.float(), pixels)
                groups = [
                    group._replace(output=self._joined(group.output, parts[group.rows]))
                    for group in groups
                ]
                # The logarithm of 0 is not finite.
                found = scatter_sum(groups, len(z), choice.weights).clamp_min(1e-37).log()
                own = chosen.any(1)[:, None, None, None]
                joined = rows.together(found.where(own, parts), *logits.shape[-2:])
                logits = joined.to(logits.dtype)
        self._note(features, chosen, rows)
        return logits

    def _run(
        self, expert: nn.Module, features: dict[str, Tensor], rows: Windows, own: Tensor
    ) -> Tensor:
        return self._logits(expert, self._given(features, rows, own), rows)

    def _joined(self, expert: Tensor, base: Tensor) -> Tensor:
        """(R, C, h, w) probabilities of an expert's rows, with the base's."""
        if self.settings.ensembler == "bagging":
            return log_mean_probability([expert, base]).exp()
        return expert.float().softmax(1)

    def _note(self, features: Mapping[str, Tensor], chosen: Tensor, rows: Windows) -> None:
        """Keep what ran, and its cost, for whoever evaluates."""
        cost = self.cost({name: tuple(features[name].shape[1:]) for name in self.strides})
        counts = chosen.unflatten(0, (-1, rows.each)).sum(1).double()
        self.ran = counts / rows.each
        self.macs = cost.shared + counts @ counts.new_tensor(cost.experts)

    def cost(self, shapes: Mapping[str, tuple[int, ...]]) -> Cost:
        """Multiply-adds for an image: base and gate, and of each expert for one row.

        Args:
            shapes: (C, H, W) of the features by name.
        """
        assert isinstance(self.settings, SegmentationSingleGateSettings)
        key = tuple(number for shape in shapes.values() for number in shape)
        tails = any(isinstance(expert, TailExpert) for expert in self.experts)
        if tails:
            key += tuple(self._recalled.images.shape[1:])
        if key not in self._costs:
            features = {name: torch.empty((1, *s), device="meta") for name, s in shapes.items()}
            window, halo = self.settings.window, self.settings.halo
            rows = Windows.over(features, self.strides, window, halo)
            parts = rows.cut(features, torch.zeros(1, dtype=torch.int64, device="meta"))
            gate = rows.each * self.gate.linear.weight.numel()
            base = without_data(self.base)
            if tails:
                expert, seen = without_data(self.experts[0]), self._recalled.without_data()
                each = call_macs(expert, seen, "all")[0]
            else:
                each = call_macs(base, parts, "all")[0]
            self._costs[key] = Cost(
                call_macs(base, features, "all")[0] + gate, (each,) * len(self.experts)
            )
        return self._costs[key]


def segmentation_mixture_of(model: nn.Module) -> SingleGateSegmentor | None:
    """The mixture in a segmentation model's head; None for other heads and models."""
    head = getattr(unwrap(model), "sem_seg_head", None)
    return head if isinstance(head, SingleGateSegmentor) else None
