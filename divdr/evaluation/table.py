"""Results of an evaluation as one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tabulate import tabulate


def summary_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One row a figure: data set, task, name, value.

    Args:
        results: {data set: {task: {name: number}}}.
    """
    rows = [
        (dataset, task, name, value)
        for dataset, tasks in results.items()
        for task, figures in tasks.items()
        if isinstance(figures, Mapping)
        for name, value in figures.items()
        if not (
            task in ("sem_seg", "classification") and "-" in name
        )  # one class each; in results.json
    ]
    return tabulate(rows, headers=("data set", "task", "figure", "value"), floatfmt=".4f")
