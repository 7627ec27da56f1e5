"""Which branch each class belongs to, kept in checkpoints with the classes that it was made for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...errors import CheckpointError, ConfigError
from ...moe import given_partition
from ...routing import HostFact, no_negative


class BranchClasses(nn.Module):
    """A class partition as buffers of fixed size: branches, and keys of the classes' names.

    Args:
        num_classes: C, without background.
        branches: nb.

    Raises:
        ConfigError: there are more branches than classes.
    """

    partition: Tensor
    keys: Tensor

    def __init__(self, num_classes: int, branches: int) -> None:
        super().__init__()
        if branches > num_classes:
            raise ConfigError(
                f"{branches} branches cannot share {num_classes} classes; every branch needs one"
            )
        self.num_classes = num_classes
        self.branches = branches
        # -1: no partition has been set yet.
        self.register_buffer("partition", torch.full((num_classes,), -1, dtype=torch.int64))
        self.register_buffer("keys", torch.zeros(num_classes, dtype=torch.int64))
        self._known = HostFact(no_negative)

    def set(self, partition: Tensor, classes: Sequence[str]) -> None:
        """Say which branch each class (C,) belongs to, and what the classes are called.

        Raises:
            ConfigError: that does not suit the branches or the number of classes.
        """
        checked = given_partition(partition.tolist(), self.branches)
        if len(checked) != self.num_classes or len(classes) != self.num_classes:
            raise ConfigError(
                f"the partition is of {len(checked)} classes; the model has {self.num_classes}"
            )
        self.partition.copy_(checked)
        self.keys.copy_(_keys(classes))

    @property
    def known(self) -> bool:
        """Whether a partition was set or loaded."""
        return self._known.of(self.partition)

    def check(self, classes: Sequence[str]) -> None:
        """See that the partition is of these classes; without one nothing is wrong.

        Raises:
            CheckpointError: it is not; the message names the first class that is another.
        """
        if not self.known:
            return
        if len(classes) != self.num_classes:
            raise CheckpointError(
                f"the class partition in the checkpoint is of {self.num_classes} classes; the data "
                f"set has {len(classes)}"
            )
        other = (self.keys.cpu() != _keys(classes)).nonzero()[:, 0].tolist()
        if other:
            raise CheckpointError(
                "the class partition in the checkpoint was made for another data set: class "
                f"{other[0]} is not {classes[other[0]]!r} there"
            )

    def owners(self, labels: Tensor, chosen: Tensor) -> Tensor:
        """(N, nb) bool, the branches that learn from each proposal for themselves.

        The branch of its class; for background, which belongs to no cluster, those that run.

        Args:
            labels: (N,) int64; C is background.
            chosen: (N, nb) bool, branches that run.
        """
        numbers = torch.arange(self.branches, device=labels.device)
        own = self.of(labels)[:, None] == numbers
        return own.where((labels < self.num_classes)[:, None], chosen)

    def of(self, labels: Tensor) -> Tensor:
        """(N,) branch of each label; what is given for background means nothing."""
        return self.partition[labels.clamp(max=self.num_classes - 1)]


def _keys(classes: Sequence[str]) -> Tensor:
    """(C,) int64, the first eight bytes of each name's SHA-256: checkpoints hold tensors alone."""
    digests = [hashlib.sha256(name.encode()).digest()[:8] for name in classes]
    return torch.tensor([int.from_bytes(d, "big", signed=True) for d in digests])
