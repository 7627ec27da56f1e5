"""Which classes each branch is for (DynK-Hydra, Section 3.1), and the file that says so.

A partition is (C,) int64. Balanced ones give every branch C / nb classes, and one more to the first
branches where that does not divide.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from ..experts import kmeans


def cluster_partition(class_means: Tensor, branches: int, *, seed: int = 0) -> Tensor:
    """Algorithm 2: K-means of the classes' mean embeddings, then a balanced greedy assignment.

    Round by round, every centre takes the nearest class that is still free.

    Args:
        class_means: (C, D), mean embedding of each class.
        branches: nb.
        seed: of K-means.

    Raises:
        ConfigError: more branches than classes.
    """
    _check(len(class_means), branches)
    centres = kmeans(class_means, branches, seed=seed).centres
    return greedy_partition(torch.cdist(class_means.double(), centres.double()))


def greedy_partition(distances: Tensor) -> Tensor:
    """The rounds of Algorithm 2.

    Args:
        distances: (C, nb), of every class to every centre.
    """
    distances = distances.clone()
    classes, branches = distances.shape
    partition = torch.full((classes,), -1, dtype=torch.int64)
    for step in range(classes):
        branch = step % branches
        nearest = int(distances[:, branch].argmin())
        distances[nearest] = torch.inf
        partition[nearest] = branch
    return partition


def random_partition(classes: int, branches: int, *, seed: int = 0) -> Tensor:
    """A balanced partition by chance (Table 5, "Random").

    Raises:
        ConfigError: more branches than classes.
    """
    _check(classes, branches)
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    partition = torch.empty(classes, dtype=torch.int64)
    partition[order] = torch.arange(classes) % branches
    return partition


def given_partition(labels: Sequence[int], branches: int) -> Tensor:
    """A partition by given labels, one a class (Table 5, "Semantic Label").

    Raises:
        ConfigError: a label is no branch, or a branch has no class.
    """
    partition = torch.as_tensor(list(labels), dtype=torch.int64)
    _check(len(partition), branches)
    if int(partition.min()) < 0 or int(partition.max()) >= branches:
        raise ConfigError(
            f"the partition names branch {int(partition.max())}; there are {branches}, from 0"
        )
    empty = (partition.bincount(minlength=branches) == 0).nonzero()[:, 0].tolist()
    if empty:
        raise ConfigError(f"the partition gives branch {empty[0]} no class")
    return partition


def _check(classes: int, branches: int) -> None:
    if not 1 <= branches <= classes:
        raise ConfigError(
            f"{branches} branches cannot share {classes} classes; every branch needs one"
        )


def save_partition(
    path: str | Path, dataset: str, classes: Sequence[str], partition: Tensor
) -> None:
    """Write a partition (C,) as JSON.

    Args:
        path: of the file.
        dataset: name of the training set, for people.
        classes: their names, in the order of the partition.
        partition: branch of every class.
    """
    content = {
        "dataset": dataset,
        "branches": int(partition.max()) + 1,
        "classes": dict(zip(classes, partition.tolist(), strict=True)),
    }
    Path(path).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def load_partition(path: str | Path, classes: Sequence[str], branches: int) -> Tensor:
    """Read a partition for a data set of these classes.

    Returns:
        (C,) int64, in the order of ``classes``.

    Raises:
        DataError: no such file, it is none, or it is of another data set.
        ConfigError: it does not suit the number of branches.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        dataset, found = content["dataset"], content["classes"]
        labels = {str(name): int(branch) for name, branch in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"class partition {path} cannot be read ({error!r})") from None
    if set(labels) != set(classes):
        other = sorted(set(labels) ^ set(classes))[0]
        raise DataError(
            f"class partition {path} is of data set {dataset!r} with {len(labels)} classes, and "
            f"does not suit these {len(classes)}: {other!r} is in one of them alone"
        )
    return given_partition([labels[name] for name in classes], branches)
