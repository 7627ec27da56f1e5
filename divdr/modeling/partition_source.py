"""Class partitions of Hydra's branches as settings ask for them, in classifiers and box heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode
from torch import Tensor

from ..errors import ConfigError
from ..moe import (
    HydraSettings,
    cluster_partition,
    given_partition,
    load_partition,
    random_partition,
)


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


def partition_as_set(settings: CfgNode, key: str, source: PartitionSource) -> Tensor:
    """(C,) the branch of every class.

    Args:
        settings: with ``PARTITION``, ``PARTITION_FILE`` and ``BRANCHES``.
        key: where they stand in the config, for messages.
        source: of which only what is asked for is made.

    Raises:
        ConfigError: a setting is unknown, out of range or does not suit the data set.
        DataError: the partition's file does not, or a class has no sample.
    """
    count, classes = settings.BRANCHES, source.classes
    if settings.PARTITION == "random":
        return random_partition(len(classes), count, seed=source.seed)
    if settings.PARTITION == "coarse":
        coarse = source.coarse()
        if coarse is None:
            raise ConfigError(f'{key}.PARTITION "coarse": the training set has no super-classes')
        if max(coarse) + 1 != count:
            raise ConfigError(
                f'{key}.PARTITION "coarse": the training set has {max(coarse) + 1} super-classes, '
                f"and BRANCHES is {count}"
            )
        return given_partition(coarse, count)
    if settings.PARTITION == "file":
        return load_partition(settings.PARTITION_FILE, classes, count)
    if settings.PARTITION == "cluster":
        return cluster_partition(source.means(), count, seed=source.seed)
    raise ConfigError(
        f"{key}.PARTITION {settings.PARTITION!r} is unknown; known are cluster, random, coarse "
        "and file"
    )


def hydra_settings(settings: CfgNode, key: str) -> HydraSettings:
    """The settings of a Hydra.

    Args:
        settings: the node, with ``BRANCHES``.
        key: where it stands in the config, for messages.

    Raises:
        ConfigError: there are no branches.
    """
    if settings.BRANCHES < 1:
        raise ConfigError(f"{key}.BRANCHES must be at least 1, not {settings.BRANCHES}")
    return HydraSettings(
        top_k=settings.TOP_K,
        threshold=settings.THRESHOLD,
        train_threshold=settings.TRAIN_THRESHOLD,
        ensemble_weight=settings.ENSEMBLE_WEIGHT,
        gater_weight=settings.GATER_WEIGHT,
        branch_weight=settings.BRANCH_WEIGHT,
    )
