"""Embeddings of images by a classifier, and their mean for every class (Algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ..errors import ConfigError, DataError


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
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        raise DataError(
            f"label {int(wrong[0])} is no class; there are {num_classes} classes, from 0"
        )
