"""Class partitions of Hydra's branches as settings ask for them, in classifiers and box heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import ConfigError
from ..moe import (
    cluster_partition,
    given_partition,
    load_partition,
    random_partition,
)
from ..settings import GatingSettings


@dataclass(frozen=True)
class PartitionSource:
    """What a partition can be made from.

    Attributes:
        classes: names of the training set's classes.
        coarse: gives the data set's own super-class of each class, from 0; None: it has none.
        means: gives the mean embedding (C, D) of each class.
        seed: of chance and of K-means.
    """

    classes: Sequence[str]
    coarse: Callable[[], Sequence[int] | None]
    means: Callable[[], Tensor]
    seed: int = 0


def partition_as_set(settings: GatingSettings, source: PartitionSource) -> Tensor:
    """(C,) the branch of every class.

    Args:
        settings: whose ``KEY`` messages name.
        source: of which only what is asked for is made.

    Raises:
        ConfigError: a setting does not suit the data set.
        DataError: the partition's file does not, or a class has no sample.
    """
    key, count, classes = settings.KEY, settings.branches, source.classes
    if settings.partition == "random":
        return random_partition(len(classes), count, seed=source.seed)
    if settings.partition == "coarse":
        coarse = source.coarse()
        if coarse is None:
            raise ConfigError(f'{key}.PARTITION "coarse": the training set has no super-classes')
        if max(coarse) + 1 != count:
            raise ConfigError(
                f'{key}.PARTITION "coarse": the training set has {max(coarse) + 1} super-classes, '
                f"and BRANCHES is {count}"
            )
        return given_partition(coarse, count)
    if settings.partition == "file":
        return load_partition(settings.partition_file, classes, count)
    return cluster_partition(source.means(), count, seed=source.seed)
