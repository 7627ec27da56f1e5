"""Embeddings of images by a classifier, and their mean for every class, over all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError, DataError
from ..routing import process_count, to_device
from .named import NamedInput


class Embedder(nn.Module):
    """What a classifier's last linear layer sees: (N, ...) images to (N, D).

    Args:
        classifier: any module with a linear layer at its end.

    Raises:
        ConfigError: it has none.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier
        layers = [m for m in classifier.modules() if isinstance(m, nn.Linear)]
        if not layers:
            raise ConfigError(f"{type(classifier).__name__} has no linear layer to embed images by")
        self._last = [layers[-1]]  # in a list, so that it is no child twice

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Embed a batch."""
        seen: list[Tensor] = []
        handle = self._last[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        try:
            self.classifier(images)
        finally:
            handle.remove()
        return seen[-1].flatten(1)


class LibraryEmbedder(nn.Module):
    """An embedder that sees images as its library's weights expect them, whatever a model sees.

    Args:
        classifier: of three channels, red first, with its library's weights.
        given: size, mean and deviation that they were trained on.
        pixel_mean: of the images that come, a number a channel, to undo their normalisation.
        pixel_std: likewise.
        reverse: they come as blue, green, red.
        at_once: images that it looks at in one go; those of a library can be large.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        classifier: nn.Module,
        given: NamedInput,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        *,
        reverse: bool = False,
        at_once: int = 16,
    ) -> None:
        super().__init__()
        self.embed = Embedder(classifier)
        self.size, self.reverse, self.at_once = given.size, reverse, at_once
        for name, values in (
            ("pixel_mean", pixel_mean),
            ("pixel_std", pixel_std),
            ("mean", given.mean),
            ("std", given.std),
        ):
            self.register_buffer(name, torch.tensor(list(values))[:, None, None])

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 1 or 3, H, W) to (N, D)."""
        return torch.cat([self.embed(self.seen(part)) for part in images.split(self.at_once)])

    def seen(self, images: Tensor) -> Tensor:
        """(N, 3, H', W') the images as the classifier sees them; grey ones in three channels."""
        pixels = (images * self.pixel_std + self.pixel_mean) / 255
        if self.reverse:
            pixels = pixels.flip(1)
        pixels = F.interpolate(
            pixels, self.size, mode="bilinear", align_corners=False, antialias=True
        )
        return (pixels.expand(-1, 3, -1, -1) - self.mean) / self.std


class PixelEmbedder(nn.Module):
    """The pixels themselves; enough for tiny images that lie still, like digits."""

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C · H · W)."""
        return images.flatten(1)


Embed = Callable[[Tensor], Tensor]
"""Samples (N, ...) to embeddings (N, D)."""


@torch.no_grad()
def class_sums(
    embed: Embed, batches: Iterable[tuple[Tensor, Tensor]], num_classes: int
) -> tuple[Tensor | None, Tensor]:
    """(C, D) float64 sum of every class's embeddings, and (C,) how many each has.

    Args:
        embed: in evaluation.
        batches: (samples, labels) of every one once.
        num_classes: C.

    Returns:
        Sums, None if there is no sample at all, and counts.

    Raises:
        DataError: a label is no class.
    """
    sums: Tensor | None = None
    counts = torch.zeros(num_classes, dtype=torch.int64)
    for samples, labels in batches:
        check_labels(labels, num_classes)
        labels = labels.cpu()
        embedded = embed(samples).double().cpu()
        if sums is None:
            sums = embedded.new_zeros((num_classes, embedded.shape[1]))
        sums.index_add_(0, labels, embedded)
        counts += labels.bincount(minlength=num_classes)
    return sums, counts


def class_means(embed: Embed, batches: Iterable[tuple[Tensor, Tensor]], num_classes: int) -> Tensor:
    """(C, D) float64 mean embedding of every class.

    Args:
        embed: in evaluation.
        batches: (images, labels) of every training image once.
        num_classes: C.

    Raises:
        DataError: a class has no image, or a label is no class.
    """
    sums, counts = class_sums(embed, batches, num_classes)
    missing = (counts == 0).nonzero()[:, 0].tolist()
    if sums is None or missing:
        raise DataError(
            f"class {missing[0]} has no training image, so that it cannot be given to a branch"
        )
    return sums / counts[:, None]


def check_labels(labels: Tensor, num_classes: int) -> None:
    """See that labels are classes.

    Raises:
        DataError: names the first that is none.
    """
    wrong = (labels < 0) | (labels >= num_classes)
    if bool(wrong.any()):
        raise DataError(
            f"label {int(labels[wrong][0])} is no class; there are {num_classes} classes, from 0"
        )


@torch.no_grad()
def gather_rows(rows: Tensor) -> tuple[Tensor, slice]:
    """Rows (R, D) of all processes, in the order of their ranks; a collective call.

    Args:
        rows: of this process; every process may have another number of them, or none.

    Returns:
        (M, D) the same on all processes, and where this one's rows stand in it.
    """
    count = process_count()
    if count == 1:
        return rows.detach(), slice(0, len(rows))
    own = to_device(torch.tensor([len(rows)]), rows.device)
    lengths = [torch.zeros_like(own) for _ in range(count)]
    dist.all_gather(lengths, own)
    sizes = torch.cat(lengths).tolist()
    padded = rows.new_zeros((max(sizes), rows.shape[1]))
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in range(count)]
    dist.all_gather(parts, padded)
    start = sum(sizes[: dist.get_rank()])
    every = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
    return every, slice(start, start + len(rows))


@torch.no_grad()
def common_divisors(counts: Tensor) -> Tensor:
    """What sums over this process's samples are divided by to be means over those of all.

    DDP takes the mean of the processes' gradients. A mean over the samples that one process has of
    a kind would so weigh less the fewer processes have any; a sum over them, divided by the mean
    number of such samples in a process, gives what one process with all of them would learn.

    Args:
        counts: (E,) samples of each kind in this process; a collective call.

    Returns:
        (E,) float32, the mean over the processes, the same on all.
    """
    total = counts.clone()
    add_up(total)
    return total / process_count()


@torch.no_grad()
def add_up(*values: Tensor) -> None:
    """Replace each tensor, in place, by its sum over all processes; a collective call."""
    if process_count() > 1:
        for value in values:
            dist.all_reduce(value)
