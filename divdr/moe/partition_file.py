"""Class partitions as files: which data set, its classes, and the branch of each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ..errors import DataError
from .partition import given_partition


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
