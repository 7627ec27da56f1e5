"""What evaluators of all processes have noted, on the main one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from detectron2.utils import comm

Row = TypeVar("Row")


def gathered(rows: Sequence[Row]) -> list[Row] | None:
    """The rows of all processes, one process's after another's; None on all but the main one.

    All processes have to call it.
    """
    comm.synchronize()
    parts = comm.gather(list(rows))
    return [row for part in parts for row in part] if comm.is_main_process() else None
