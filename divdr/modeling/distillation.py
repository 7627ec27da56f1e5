"""What a routed network learns from a trained one that opens everything: its maps.

Distances between maps in training are those of FitNets (Romero et al., ICLR 2015), here of the
maps that leave the backbone, so that any head goes with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint import find_weights, load_exactly, read_weights
from ..errors import CheckpointError
from ..routing import DynamicRoutingNetwork
from ..settings import RoutingSettings
from .backbone import DynamicRouting

_PLACE = "network."


def map_distance(maps: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Mean squared distance over the mean square of what is wanted, the mean over scales.

    Args:
        maps: (N, C_s, H_s, W_s) of each scale.
        wanted: of the same shapes; no gradient goes there.

    Returns:
        A number in float32: 0 where they agree, 1 where ``maps`` are 0.
    """
    each = []
    for own, theirs in zip(maps, wanted, strict=True):
        target = theirs.detach().float()
        square = target.square().mean().clamp(min=torch.finfo(torch.float32).tiny)
        each.append(F.mse_loss(own.float(), target) / square)
    return torch.stack(each).mean()


class Distillation:
    """Compares the maps of a backbone in training with those of its teacher.

    The teacher runs in evaluation on every image that the backbone trains on; neither it nor this
    is part of the model, its state or its parameters.

    Args:
        backbone: that learns.
        teacher: makes a network with maps of the same shapes; asked when training begins, as who
            evaluates needs none.
        weight: of the distance in the loss.

    Attributes:
        loss: of the last forward with gradients, weighted; None before one.
    """

    def __init__(
        self,
        backbone: DynamicRouting,
        teacher: Callable[[], DynamicRoutingNetwork],
        weight: float,
    ) -> None:
        self.weight = weight
        self.loss: Tensor | None = None
        self._make = teacher
        self._teacher: DynamicRoutingNetwork | None = None
        backbone.register_forward_hook(self._compare)

    @classmethod
    def of(cls, backbone: DynamicRouting, settings: RoutingSettings) -> Distillation | None:
        """As ``MODEL.ROUTING.DISTILLATION`` says; None without a teacher.

        Args:
            backbone: that learns.
            settings: with which it was built; its teacher has the same but for gates, route, drop
                path and choice of operations.
        """
        if not settings.distillation.weights:
            return None
        channels = next(backbone.network.stem.parameters()).shape[1]
        teacher = partial(read_teacher, settings, channels)
        return cls(backbone, teacher, settings.distillation.weight)

    def forget(self) -> None:
        """Drop the loss of the last forward."""
        self.loss = None

    def _compare(
        self, backbone: nn.Module, args: tuple[Tensor], output: Mapping[str, Tensor]
    ) -> None:
        if not (backbone.training and torch.is_grad_enabled()):
            return
        if self._teacher is None:
            with torch.random.fork_rng(devices=[]):  # a resumed run draws what it would have
                self._teacher = self._make().eval().to(args[0].device)
        with torch.no_grad():
            wanted, _ = self._teacher(args[0])
        self.loss = self.weight * map_distance(list(output.values()), wanted)


def read_teacher(settings: RoutingSettings, in_channels: int) -> DynamicRoutingNetwork:
    """The network of all paths whose weights ``settings.distillation`` names.

    Args:
        settings: of the network that learns; the teacher has the same but for gates, route, drop
            path, normalisation by several processes, and choice of operations.
        in_channels: channels of the image.

    Raises:
        CheckpointError: the weights are missing, damaged, or of another network.
    """
    whole = replace(settings, gate="none", route="", drop_path=0.0, gate_threshold=0.0)
    whole = replace(whole, op_gate=RoutingSettings.op_gate)
    teacher = DynamicRouting.of(whole, in_channels).network
    path = settings.distillation.weights
    content = find_weights(read_weights(path))
    held = {} if content is None else content.weights
    # Under a neck the backbone's own name is a longer one.
    weights = {n.rpartition(_PLACE)[2]: v for n, v in held.items() if _PLACE in n}
    if not weights:
        raise CheckpointError(f"checkpoint {path} holds no routed backbone")
    load_exactly([teacher], weights, f"the teacher {path}")
    return teacher
