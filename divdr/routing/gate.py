"""The soft conditional gate: which transforms of a cell an image opens, and how far.

Li et al. (CVPR 2020), Section 3.2, Eq. 3 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..settings import RoutingSettings
from .ops import NormFactory, conv_norm

_LEAST = 0.01
GATE_KINDS = RoutingSettings.choices("gate")
_SET_LATER = ("gate.route", "gate.threshold", "early.route", "early.threshold")


@dataclass(frozen=True)
class GateOptions:
    """What kind of gates a network has, where they start and what they may say.

    Attributes:
        kind: one of ``GATE_KINDS``.
        bias: start value of the last bias, in logits; 1.5 opens every gate to 0.9.
        stays_open: logits say how far transforms are open, never whether (``kept_open``).
        floor: least value of what is open, in [0, 1). Logits above 0 are lifted by artanh of it, so
            that values jump to it where they start from 0 otherwise.

    Raises:
        ConfigError: no such kind or floor.
    """

    kind: str = RoutingSettings.gate
    bias: float = RoutingSettings.gate_bias
    stays_open: bool = False
    floor: float = RoutingSettings.gate_floor

    def __post_init__(self) -> None:
        if self.kind not in GATE_KINDS:
            raise ConfigError(f"unknown gate {self.kind!r}; known are {', '.join(GATE_KINDS)}")
        if not 0.0 <= self.floor < 1.0:
            raise ConfigError(f"the floor of gates is at least 0 and below 1, not {self.floor}")


class GateBase(nn.Module):
    """What all gates have: a start value, and what closes some transforms whatever they say.

    Args:
        options: as given to the network.

    Attributes:
        stays_open: as in the options.
        lift: that of the floor, in logits.
        threshold: logit up to which a transform is closed, at least 0. The trained gate's is 0;
            above it, what is open least closes first, and what stays open stays as far open. It is
            saved and loaded with the weights.
        route: bool for each logit, what is open for every image, all else being closed; None where
            the gate decides. It is saved and loaded with the weights.
    """

    route: Tensor | None

    def __init__(self, options: GateOptions) -> None:
        super().__init__()
        self.stays_open = options.stays_open
        self.lift = math.atanh(options.floor)
        self.threshold = 0.0
        self.initial_bias = options.bias
        self.register_buffer("route", None)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.threshold:
            destination[f"{prefix}threshold"] = torch.tensor(self.threshold, dtype=torch.float64)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Whoever loads the weights gets the cost that they were calibrated for.
        threshold = state_dict.pop(f"{prefix}threshold", None)
        if threshold is not None:
            self.threshold = float(threshold)
        # And the route, as gates that were not asked any more decide badly. Other weights of gates
        # take it away.
        bias = self.last_bias
        saved = state_dict.get(f"{prefix}route")
        if saved is not None and saved.shape == bias.shape:
            self.route = torch.zeros_like(bias, dtype=torch.bool)
        elif any(f"{prefix}{name}" in state_dict for name, _ in self.named_parameters()):
            self.route = None
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @property
    def last_bias(self) -> Tensor:
        """What is added to the logits last, one for each."""
        raise NotImplementedError

    def reset_bias(self) -> None:
        """Set the last bias to its start value."""
        nn.init.constant_(self.last_bias, self.initial_bias)

    def decided(self, logits: Tensor) -> Tensor:
        """Logits, those that the route or the threshold closes at most 0."""
        if self.route is not None:
            return torch.where(self.route, kept_open(logits), logits.clamp(max=0.0))
        if self.stays_open:
            return kept_open(logits)
        if self.lift:
            logits = torch.where(logits > 0, logits + self.lift, logits)
        if self.threshold > 0:
            return torch.where(logits > self.threshold, logits, logits.clamp(max=0.0))
        return logits


class LookingGate(GateBase):
    """What ends with the mean over a map and a 1×1 convolution to the gates.

    Attributes:
        pool: the mean.
        predict: the convolution.
    """

    pool: nn.Module
    predict: nn.Conv2d

    @property
    def last_bias(self) -> Tensor:
        """The convolution's."""
        return cast(Tensor, self.predict.bias)

    def predicted(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) that it ends with → its logits, what it closes at most 0."""
        # A decision near the threshold must not hang on half precision.
        with torch.autocast(device_type=x.device.type, enabled=False):
            x = x if x.dtype == torch.float64 else x.float()
            return self.decided(self.predict(self.pool(x)).flatten(1))


class Gate(LookingGate):
    """1×1 convolution C → C/2, norm, ReLU, average over the map, 1×1 convolution to the gates.

    Args:
        channels: C of the cell's input.
        transforms: number of gates.
        norm: makes the normalisation layer.
        options: of kind "small" it shrinks the input ×1/4 (bilinear) first, which cuts the gate's
            cost by 16.
    """

    def __init__(
        self, channels: int, transforms: int, norm: NormFactory, options: GateOptions
    ) -> None:
        super().__init__(options)
        inner = max(1, channels // 2)
        self.small = options.kind == "small"
        self.reduce = conv_norm(channels, inner, norm)
        self.pool = _MeanPool(1)
        self.predict = nn.Conv2d(inner, transforms, 1)

    def map_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of the map the gate looks at for a cell input of this size."""
        return _quarter_size(height, width) if self.small else (height, width)

    def shrunk(self, x: Tensor) -> Tensor:
        """The map the gate looks at, (N, C, H', W'), of the cell's input (N, C, H, W)."""
        return _quarter(x) if self.small else x

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → logits (N, transforms), fp32 whatever the precision of ``x``."""
        return self.predicted(self.reduce(self.shrunk(x)))


class StaticGate(GateBase):
    """A learned logit for each transform, the same for every image; it costs no multiply-adds.

    What a gate of Li et al. is worth beyond it is what looking at the image is worth.

    Args:
        transforms: number of gates.
        options: as of ``GateBase``.
    """

    def __init__(self, transforms: int, options: GateOptions) -> None:
        super().__init__(options)
        self.bias = nn.Parameter(torch.full((transforms,), options.bias))

    @property
    def last_bias(self) -> Tensor:
        """(T,) the logits, before ``kept_open``."""
        return self.bias

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → logits (N, transforms), in fp32 at least."""
        bias = self.bias if self.bias.dtype == torch.float64 else self.bias.float()
        return self.decided(bias).expand(len(x), -1)


class EarlyLook(LookingGate):
    """All gates of a network from one look at the image, before anything runs.

    BlockDrop (Wu et al., CVPR 2018) decides so by a network beside the one that it steers. Here it
    is two 3×3 convolutions of stride 2 over the image at a quarter of its size, the mean, and a 1×1
    convolution.

    Args:
        in_channels: of the image.
        channels: C of the network at stride 4, and of what the look ends with.
        exists: (cells, T) bool, the transforms that have a gate.
        norm: makes the normalisation layer.
        options: as of ``GateBase``.

    Attributes:
        in_channels: as given.
        frozen: it is trained no longer, and normalises as in evaluation; see :meth:`freeze`.
        leaves_parameters_out: frozen, it gets no gradient, and DDP has to look for that.
    """

    leaves_parameters_out = True

    def __init__(
        self,
        in_channels: int,
        channels: int,
        exists: Tensor,
        norm: NormFactory,
        options: GateOptions,
    ) -> None:
        super().__init__(options)
        self.in_channels = in_channels
        self.frozen = False
        self._exists: Tensor
        self.register_buffer("_exists", exists.flatten(), persistent=False)
        inner = channels // 2
        self.look = nn.Sequential(
            conv_norm(in_channels, inner, norm, kernel_size=3, stride=2),
            conv_norm(inner, channels, norm, kernel_size=3, stride=2),
        )
        self.pool = _MeanPool(1)
        self.predict = nn.Conv2d(channels, exists.numel(), 1)

    @staticmethod
    def map_size(height: int, width: int) -> tuple[int, int]:
        """Size of what is looked at of an image of this size."""
        return _quarter_size(height, width)

    def freeze(self) -> None:
        """Say from now on the same of an image, whatever is trained."""
        self.frozen = True
        self.train(False)

    def train(self, mode: bool = True) -> EarlyLook:
        """As of any module, but for what is frozen."""
        return super().train(mode and not self.frozen)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, D), fp32 at least; 0 where there is no transform."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return torch.where(self._exists, self.predicted(self.look(_quarter(x))), 0.0)


def build_gate(
    channels: int, transforms: int, norm: NormFactory, options: GateOptions
) -> Gate | StaticGate | None:
    """The gate of a cell; None for the kinds "none" and "early", which is the whole network's.

    Args:
        channels: C of the cell's input.
        transforms: number of gates.
        norm: makes the normalisation layer.
        options: as of ``GateBase``.
    """
    if options.kind in ("none", "early"):
        return None
    if options.kind == "static":
        return StaticGate(transforms, options)
    return Gate(channels, transforms, norm, options)


def lasting(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a state dict holds whatever gates are set to: no routes, no thresholds of gates."""
    return {name: value for name, value in weights.items() if not name.endswith(_SET_LATER)}


def kept_open(logits: Tensor) -> Tensor:
    """Logits of the same order that are all above 0: softplus, and 0.01 more.

    The hundredth is far above what closes a cell, so that no rounding of a small softplus does.
    """
    return F.softplus(logits) + _LEAST


def constant_bias(values: Tensor, gate: StaticGate) -> Tensor:
    """(T,) bias of a gate that looks at nothing, so that it has these values in (0, 1], float64.

    Values below the gate's floor become the floor.
    """
    logits = values.double().clamp(max=1 - 2.0**-24).atanh()  # 1 has none that is finite
    if not gate.stays_open:
        return (logits - gate.lift).clamp(min=1e-9) if gate.lift else logits
    return (logits - _LEAST).clamp(min=1e-9).expm1().log()


def _quarter_size(height: int, width: int) -> tuple[int, int]:
    return max(1, height // 4), max(1, width // 4)


def _quarter(x: Tensor) -> Tensor:
    """(N, C, H, W) at a quarter of its height and width, at least 1."""
    size = x.shape[-2:]
    if min(size) >= 4:
        # By factor: by size, sides that 4 does not divide would be sampled at other places.
        return F.interpolate(x, scale_factor=0.25, mode="bilinear", align_corners=False)
    return F.interpolate(x, size=_quarter_size(*size), mode="bilinear", align_corners=False)


class _MeanPool(nn.AdaptiveAvgPool2d):
    """The mean over the map, whose gradient has the layout of maps with channels last."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, 1, 1)."""
        return x.permute(0, 2, 3, 1).mean(dim=(1, 2))[:, :, None, None]


def open_gates(logits: Tensor) -> Tensor:
    """Gate values ReLU(tanh(logits)) in [0, 1)."""
    return torch.relu(torch.tanh(logits))
