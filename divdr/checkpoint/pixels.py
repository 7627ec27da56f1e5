"""How images come into a network, and weights for images that come in another way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CheckpointError

_NORM_EPS = 1e-5  # of PyTorch's BatchNorm


@dataclass(frozen=True)
class Pixels:
    """Order of the channels, and what normalisation does to them: (pixel − mean) / std.

    Attributes:
        format: one letter a channel, as Detectron2's ``INPUT.FORMAT`` ("RGB", "BGR").
        mean: ``MODEL.PIXEL_MEAN``, in the order of ``format``.
        std: ``MODEL.PIXEL_STD``, likewise.

    Raises:
        CheckpointError: the numbers are not one a channel, or a std is not positive.
    """

    format: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.format) == len(self.mean) == len(self.std):
            raise CheckpointError(
                f"images in the format {self.format!r} need {len(self.format)} numbers of mean and "
                f"of std, not {len(self.mean)} and {len(self.std)}"
            )
        if min(self.std) <= 0:
            raise CheckpointError(f"the standard deviation of pixels must be positive: {self.std}")


PUBLISHED_PIXELS = Pixels("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0))
"""What the published Dynamic Routing code's configs feed, all of them alike."""


def adapt_first_convolution(
    state: Mapping[str, Tensor], place: str, old: Pixels, new: Pixels
) -> dict[str, Tensor]:
    """Weights that do with images as ``new`` has them what ``state`` does with ``old``'s.

    Normalisation is linear in each channel, and the stem's first convolution has neither padding
    nor bias: its channels are reordered and multiplied by new std / old std. Where the means
    differ, every output shifts by a constant, which is taken off BatchNorm's running mean; only
    what Detectron2 pads a batch with is another pixel then.

    Multiplied alone, weights for std 58 in place of 1 would be 58 times as large, and as BatchNorm
    undoes any factor, training from them would turn them 58² times more slowly. So the geometric
    mean of the factors goes into BatchNorm's statistics instead of the weights.

    Args:
        state: names ``{place}0.weight`` (C, channels, k, k) and, of the BatchNorm behind it,
            ``{place}1.weight``, ``running_mean`` and ``running_var`` (C).
        place: what stands before these names.
        old: how the images came that the weights were trained on.
        new: how they are to come.

    Raises:
        CheckpointError: the channels are not the same ones, or the means differ and no BatchNorm
            is there to take the shift.
    """
    if sorted(old.format) != sorted(new.format):
        raise CheckpointError(
            f"weights for images in the format {old.format!r} cannot be made ones for "
            f"{new.format!r}"
        )
    result = dict(state)
    if old == new:
        return result
    kernel, mean, var = f"{place}0.weight", f"{place}1.running_mean", f"{place}1.running_var"
    order = [old.format.index(channel) for channel in new.format]
    factors = torch.tensor(
        [s / old.std[o] for s, o in zip(new.std, order, strict=True)], dtype=torch.float64
    )
    offsets = torch.tensor(
        [(m - old.mean[o]) / old.std[o] for m, o in zip(new.mean, order, strict=True)],
        dtype=torch.float64,
    )
    weight = state[kernel].double()[:, order]
    shift = (weight.sum(dim=(2, 3)) * offsets).sum(dim=1)
    if mean not in state:
        if offsets.any():
            raise CheckpointError(
                f"the weights were trained on images with mean {old.mean} in {old.format}; without "
                f"BatchNorm behind the first convolution they cannot take {new.mean} in "
                f"{new.format}"
            )
        result[kernel] = _like(weight * factors.view(1, -1, 1, 1), state[kernel])
        return result
    common = math.exp(float(factors.log().mean()))
    result[kernel] = _like(weight * (factors / common).view(1, -1, 1, 1), state[kernel])
    result[mean] = _like((state[mean].double() - shift) / common, state[mean])
    spread = state[var].double()
    result[var] = _like(spread / common**2, state[var])
    # BatchNorm adds its epsilon to either variance: the scale behind it makes up for that.
    made_up = ((spread + common**2 * _NORM_EPS) / (spread + _NORM_EPS)).sqrt()
    scale = f"{place}1.weight"
    result[scale] = _like(state[scale].double() * made_up, state[scale])
    return result


def _like(value: Tensor, old: Tensor) -> Tensor:
    return value.to(old.dtype)
