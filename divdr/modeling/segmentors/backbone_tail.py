"""The end of a backbone as an expert's own: what runs before it is recalled, not run again."""

from __future__ import annotations

import copy
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ..backbone import has_routed_backbone


class Recollection(NamedTuple):
    """What an end of a backbone starts from.

    Attributes:
        images: (N, 3, H, W) that the backbone got.
        maps: what each part before the end gave, by its name.
    """

    images: Tensor
    maps: dict[str, Tensor]

    def at(self, rows: Tensor) -> Recollection:
        """Those of some images."""
        return Recollection(self.images[rows], {n: maps[rows] for n, maps in self.maps.items()})

    def without_data(self) -> Recollection:
        """The same of one image, on "meta"."""

        def bare(values: Tensor) -> Tensor:
            return torch.empty((1, *values.shape[1:]), device="meta")

        return Recollection(bare(self.images), {n: bare(maps) for n, maps in self.maps.items()})


def parts_before(backbone: nn.Module, start: str) -> list[str]:
    """Names of the parts that run before ``start``, beside it in the module that holds it.

    Raises:
        ConfigError: there is no such part or nothing before it, or the backbone is routed, whose
            layers are no parts that run one after the other.
    """
    parent, _, own = start.rpartition(".")
    holder = dict(backbone.named_modules()).get(parent)
    children = [] if holder is None else [name for name, _ in holder.named_children()]
    if has_routed_backbone(backbone):
        raise ConfigError(
            "experts cannot begin inside of a routed backbone: BACKBONE_FROM is for others"
        )
    if own not in children[1:]:
        raise ConfigError(
            f"BACKBONE_FROM {start!r}: {type(backbone).__name__} has no such part behind another; "
            f"{parent or 'it'} holds {', '.join(children) or 'none'}"
        )
    prefix = f"{parent}." if parent else ""
    return [prefix + name for name in children[: children.index(own)]]


class _Recalled(nn.Module):
    """Stands where a part ran, and gives what it gave."""

    value: Tensor | None

    def forward(self, *args: Tensor) -> Tensor:
        assert self.value is not None
        return self.value


class BackboneTail(nn.Module):
    """A copy of a backbone from one of its parts on.

    Args:
        backbone: it is not changed.
        start: the part.
    """

    def __init__(self, backbone: nn.Module, start: str) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone)
        self.before = parts_before(backbone, start)
        for name in self.before:
            # The same object, which Detectron2's ResNet also holds in a list.
            part = self.backbone.get_submodule(name)
            for held in (part._modules, part._parameters, part._buffers):
                held.clear()
            part.__class__ = _Recalled
            part.__dict__["value"] = None

    def take(self, backbone: nn.Module) -> None:
        """Take a backbone's weights."""
        own = self.backbone.state_dict()
        self.backbone.load_state_dict({n: v for n, v in backbone.state_dict().items() if n in own})

    def forward(self, seen: Recollection) -> dict[str, Tensor]:
        """Features by name, as the backbone gives them."""
        parts = [self.backbone.get_submodule(name) for name in self.before]
        for name, part in zip(self.before, parts, strict=True):
            part.__dict__["value"] = seen.maps[name]
        try:
            return self.backbone(seen.images)
        finally:
            for part in parts:
                part.__dict__["value"] = None


class TailExpert(nn.Module):
    """An expert from inside the backbone on: its end, and a head.

    Args:
        tail: see there.
        head: from features by name to logits in evaluation.
    """

    def __init__(self, tail: BackboneTail, head: nn.Module) -> None:
        super().__init__()
        self.tail = tail
        self.head = head

    def forward(self, seen: Recollection) -> tuple[Tensor, dict]:
        """What the head gives."""
        # Heads return losses where they train; their layers keep their mode.
        training, self.head.training = self.head.training, False
        try:
            return self.head(self.tail(seen))
        finally:
            self.head.training = training


class Recorder:
    """Notes what the parts of a backbone give, each time that it runs.

    Args:
        backbone: it gets forward hooks.
        names: of the parts.
    """

    def __init__(self, backbone: nn.Module, names: list[str]) -> None:
        self._images: Tensor | None = None
        self._maps: dict[str, Tensor] = {}
        backbone.register_forward_pre_hook(self._begin)
        for name in names:
            backbone.get_submodule(name).register_forward_hook(partial(self._note, name))

    def _begin(self, backbone: nn.Module, args: tuple[Tensor]) -> None:
        self._images = args[0]

    def _note(self, name: str, part: nn.Module, args: tuple, output: Tensor) -> None:
        self._maps[name] = output

    @property
    def last(self) -> Recollection:
        """Of the last batch, without gradients."""
        assert self._images is not None, "the backbone has not run yet"
        maps = {name: values.detach() for name, values in self._maps.items()}
        return Recollection(self._images.detach(), maps)
