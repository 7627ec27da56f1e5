"""The Dynamic Routing network as a Detectron2 backbone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.utils import comm
from torch import Tensor, nn

from ..errors import ConfigError
from ..inference import CurrentPlan, Route, read_route
from ..moe import Decision, OpGates, number_decisions
from ..packaged_configs import find_file
from ..routing import (
    BatchNorm,
    DynamicRoutingNetwork,
    Routing,
    RoutingSpace,
    SynchronisedBatchNorm,
)
from ..routing.ops import NormFactory
from ..settings import OpGateSettings, RoutingSettings
from .expert_record import ExpertRecord, LastRecord

# Detectron2's names for normalisation over the images of all processes.
_SYNCHRONISED = ("SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")


def norm_factory(name: str) -> NormFactory:
    """Maker of the normalisation that Detectron2 knows by ``name``.

    "" is SyncBN where several processes train, on whatever device, and BN otherwise. All of
    Detectron2's synchronised kinds are ``divdr.routing.SynchronisedBatchNorm``, as theirs do not
    bear cells that the images of some process do not reach. "GN" has as many of 32 groups as
    divide the channels.

    Raises:
        ConfigError: Detectron2 knows no such normalisation.
    """
    if not name:
        name = "SyncBN" if comm.get_world_size() > 1 else "BN"
    if name == "BN":
        return BatchNorm
    if name in _SYNCHRONISED:
        return SynchronisedBatchNorm
    # Detectron2's GN has 32 groups always, more than a narrow cell has channels.
    if name == "GN":
        return lambda channels: nn.GroupNorm(math.gcd(32, channels), channels)
    try:
        get_norm(name, 2)
    except KeyError:
        raise ConfigError(f"unknown normalisation {name!r}") from None
    return lambda channels: get_norm(name, channels)


Executor = Callable[[Tensor], tuple[list[Tensor], Routing]]
"""Runs images (N, C, H, W) as a network does: maps and record."""

INFERENCE_KINDS = RoutingSettings.choices("inference")
INFERENCE_DTYPES = {"float32": None, "bfloat16": torch.bfloat16}


# Arguments of the backbone that are settings of the same name.
_SETTINGS = (
    *("layers", "scales", "scales_per_layer", "channels", "stem_channels", "ops", "gate"),
    *(
        "route",
        "route_gates",
        "gate_threshold",
        "gate_bias",
        "gate_bias_cost",
        "gate_floor",
        "norm",
        "drop_path",
        "reach",
        "inference",
        "inference_images",
    ),
    *("inference_dtype", "conditional_training", "op_gate"),
)


def _arguments(settings: RoutingSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in _SETTINGS}


@BACKBONE_REGISTRY.register()
class DynamicRouting(Backbone):
    """Dynamic Routing backbone: images (N, C, H, W) → feature dict.

    The maps of the last layer are called "res2" (stride 4), "res3", … as Detectron2's ResNet
    calls maps of the same strides, so that necks and heads take them without other settings.
    :attr:`routing` tells what routing did in the last forward.

    In evaluation and without gradients an ``InferencePlan`` runs in place of the network, with the
    same results. Training, tracing and gradients in evaluation run the network itself.

    Args:
        layers: number of layers.
        scales: largest number of cells a layer (strides 4, 8, …).
        scales_per_layer: cells of each layer in place of the rule min(l + 2, ``scales``).
        channels: channels at stride 4.
        stem_channels: channels inside the stem.
        ops: names of the operations a cell sums.
        gate: "small", "full", "static", "early" or "none".
        route: file of the route that is the whole network (``read_route``); "" for the whole space.
        route_gates: whether gates on it stay "open" or "decide" for each image.
        gate_threshold: see :meth:`set_gate_threshold`.
        gate_bias: start value of the gates' last bias.
        gate_bias_cost: by how much it is lower for dear transforms, see ``DynamicRoutingNetwork``.
        gate_floor: least value of a gate that is open.
        norm: Detectron2's name of a normalisation; "" chooses (see ``norm_factory``).
        drop_path: largest drop path probability.
        reach: "open" or "published", see ``DynamicRoutingNetwork``.
        in_channels: channels of the image.
        inference: "plan", "specialised" for one that expects the routes of the first images, or
            "reference" to run the network itself in evaluation too.
        inference_images: how many these are.
        inference_dtype: "float32" (the network's own precision) or "bfloat16" for plans.
        conditional_training: leave out of training what no image of a batch opens.
        op_gate: whether each cell's operations are chosen by image, and how many.

    Raises:
        ValueError: the space cannot exist, or a gate, operation, inference or precision is
            unknown.
        DataError: the file of the route cannot be used.
    """

    @configurable
    def __init__(
        self,
        *,
        layers: int = RoutingSettings.layers,
        scales: int = RoutingSettings.scales,
        scales_per_layer: Sequence[int] = RoutingSettings.scales_per_layer,
        channels: int = RoutingSettings.channels,
        stem_channels: int = RoutingSettings.stem_channels,
        ops: Sequence[str] = RoutingSettings.ops,
        gate: str = RoutingSettings.gate,
        route: str = RoutingSettings.route,
        route_gates: str = RoutingSettings.route_gates,
        gate_threshold: float = RoutingSettings.gate_threshold,
        gate_bias: float = RoutingSettings.gate_bias,
        gate_bias_cost: float = RoutingSettings.gate_bias_cost,
        gate_floor: float = RoutingSettings.gate_floor,
        norm: str = RoutingSettings.norm,
        drop_path: float = RoutingSettings.drop_path,
        reach: str = RoutingSettings.reach,
        in_channels: int = 3,
        inference: str = RoutingSettings.inference,
        inference_images: int = RoutingSettings.inference_images,
        inference_dtype: str = RoutingSettings.inference_dtype,
        conditional_training: bool = RoutingSettings.conditional_training,
        op_gate: OpGateSettings = RoutingSettings.op_gate,
    ) -> None:
        super().__init__()
        if inference not in INFERENCE_KINDS:
            raise ConfigError(
                f"unknown inference {inference!r}; known are {', '.join(INFERENCE_KINDS)}"
            )
        if inference_dtype not in INFERENCE_DTYPES:
            raise ConfigError(
                f"unknown inference dtype {inference_dtype!r}; known are "
                f"{', '.join(INFERENCE_DTYPES)}"
            )
        space = RoutingSpace.build(layers, scales, scales_per_layer)
        if route:
            space = read_route(find_file(route), space).restricted()
        self.network = DynamicRoutingNetwork(
            space,
            channels=channels,
            stem_channels=stem_channels,
            ops=ops,
            gate=gate,
            gate_bias=gate_bias,
            gate_bias_cost=gate_bias_cost,
            gate_floor=gate_floor,
            norm=norm_factory(norm),
            drop_path=drop_path,
            reach=reach,
            in_channels=in_channels,
            conditional_training=conditional_training,
            op_gate=OpGates.of(op_gate),
            route_gates=route_gates,
        )
        self.network.set_gate_threshold(gate_threshold)
        self._out_features = [f"res{scale + 2}" for scale in range(space.out_scales)]
        self._last: LastRecord[Routing] = LastRecord()
        self._inference = inference
        self._inference_dtype = INFERENCE_DTYPES[inference_dtype]
        if inference == "specialised" and op_gate.name != "sum":
            raise ConfigError(
                'MODEL.ROUTING.INFERENCE "specialised" cannot run images that choose operations '
                "(MODEL.ROUTING.OP_GATE)"
            )
        if inference == "specialised" and gate == "early":
            raise ConfigError(
                'MODEL.ROUTING.INFERENCE "specialised" has nothing to expect where one look '
                'decides the whole route (GATE "early"): its plan is "plan"'
            )
        self._plan = CurrentPlan(inference_images if inference == "specialised" else 0)
        self._route: Route | Tensor | None = None
        self._executor: Executor | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        """Arguments from ``cfg.MODEL.ROUTING``."""
        settings = RoutingSettings.of(cfg.MODEL.ROUTING)
        return {"in_channels": input_shape.channels, **_arguments(settings)}

    @classmethod
    def of(cls, settings: RoutingSettings, in_channels: int = 3) -> DynamicRouting:
        """The backbone that settings describe; those of losses and clustering concern it not."""
        return cls(in_channels=in_channels, **_arguments(settings))

    @property
    def routing(self) -> Routing | None:
        """Record of this thread's last forward; None before the first."""
        return self._last.record

    def forget(self) -> None:
        """Drop the record of the last forward."""
        self._last.record = None

    @property
    def expert_decisions(self) -> tuple[Decision, ...]:
        """One a cell that chooses operations; () where all are summed."""
        return number_decisions(
            [
                (f"layer {cell.node.layer} stride {4 * 2**cell.node.scale}", tuple(cell.ops))
                for cell in self.network.cells()
                if cell.op_gate is not None
            ]
        )

    @property
    def expert_record(self) -> ExpertRecord | None:
        """What the last forward's record says of operations; None where all are summed."""
        record = self.routing
        if record is None or record.op_weights is None or record.op_loads is None:
            return None
        weights, loads = record.op_weights.unbind(1), record.op_loads.unbind(1)
        ran = (record.op_weights.detach() > 0).flatten(1)
        return ExpertRecord(list(weights), list(loads), ran, record.size)

    def forget_experts(self) -> None:
        """Drop the record of the last forward."""
        self.forget()

    def set_gate_threshold(self, threshold: float) -> None:
        """Make a trained network cheaper: transforms whose gates are not further open are closed.

        Args:
            threshold: in logits; a gate is open as far as their tanh says. 0 is what was trained.

        Raises:
            ConfigError: it is below 0, or the network has one cost.
        """
        self.network.set_gate_threshold(threshold)
        self._plan.drop()  # plans look at tensors for changes, and this is none

    def fix_route(self, opened: Tensor | None, initial: Tensor | None = None) -> None:
        """Open one route for every image from now on; see ``DynamicRoutingNetwork.fix_route``."""
        self.network.fix_route(opened, initial)
        self._plan.drop()

    def follow(self, route: Route | Tensor | None) -> None:
        """From now on take this route in evaluation; None lets the gates decide again.

        Args:
            route: a ``Route`` or gate values (D,) for all images. With ``inference="reference"``,
                gradients or tracing the gates run nevertheless, and the initial cell's decide.
        """
        self._route = route

    def run_with(self, executor: Executor | None) -> None:
        """From now on run something else in evaluation, a ``DispatchPlan`` of static experts, say.

        Gradients and tracing run the network nevertheless, and going back to training ends it.

        Args:
            executor: with weights of its own; None runs the network again.
        """
        self._executor = executor

    @property
    def looks(self) -> bool:
        """Whether gates that look at the image run in evaluation, and not something given."""
        return self.network.looks and self._route is None and self._executor is None

    @property
    def space(self) -> RoutingSpace:
        """The routing space."""
        return self.network.space

    @property
    def size_divisibility(self) -> int:
        """Inputs of this multiple keep the maps of all strides aligned."""
        return self.space.max_stride

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every feature."""
        return {
            name: ShapeSpec(channels=channels, stride=4 * 2**scale)
            for scale, (name, channels) in enumerate(
                zip(self._out_features, self.network.out_channels(), strict=True)
            )
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Normalised images (N, C, H, W) → {"res2": (N, C, H/4, W/4), "res3": …}."""
        route = None if self.training else self._route
        free = self._may_be_replaced(x)
        planned = None
        if free and self._executor is not None:
            planned = self._executor(x)
        elif free and self._inference != "reference":
            planned = self._plan.run(self.network, x, route, self._plan_dtype(x))
        if planned is not None:
            outputs, self._last.record = planned
        else:
            if isinstance(route, Route):
                route = route.activations
            if route is not None:
                route = route.to(x).view(-1, self.space.activation_size).expand(len(x), -1)
            outputs, self._last.record = self.network(x, route)
        return dict(zip(self._out_features, outputs, strict=True))

    def train(self, mode: bool = True) -> DynamicRouting:
        """Switch to training or evaluation; plans are made anew after a change."""
        if mode != self.training:
            self._plan.drop()
        if mode:
            self._executor = None
        return super().train(mode)

    def _apply(self, fn, recurse: bool = True):
        self._plan.drop()  # moved weights: the plan's copy need not live on beside them
        return super()._apply(fn, recurse)

    def _may_be_replaced(self, x: Tensor) -> bool:
        """Whether something else may run in place of the network."""
        return not (
            self.training
            or torch.is_grad_enabled()
            or torch.jit.is_tracing()
            or torch.compiler.is_compiling()
            # Replicas of nn.DataParallel share this holder but not its device.
            or getattr(self, "_is_replica", False)
        )

    def _plan_dtype(self, x: Tensor) -> torch.dtype | None:
        dtype = self._inference_dtype
        device = x.device.type
        if dtype is None and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        return dtype


def has_routed_backbone(model: torch.nn.Module) -> bool:
    """Whether a Dynamic Routing backbone is anywhere inside a model."""
    return any(isinstance(m, DynamicRouting) for m in model.modules())


def find_backbone(model: torch.nn.Module) -> DynamicRouting:
    """The Dynamic Routing backbone inside a model.

    Raises:
        ValueError: the model has none, or several.
    """
    found = [m for m in model.modules() if isinstance(m, DynamicRouting)]
    if len(found) != 1:
        raise ValueError(f"the model has {len(found)} DynamicRouting backbones; one is needed")
    return found[0]
