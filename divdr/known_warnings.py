"""Warnings of libraries that every run gives, that are known to be harmless, and that nobody who
trains or predicts can do anything about: they are not shown, all others are.

Nothing here imports torch: some of them are given while torch or Detectron2 is imported.
"""

from __future__ import annotations

import logging
import re
import warnings
from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """A warning that is not shown.

    Attributes:
        message: a regular expression for its beginning.
        why: it is harmless.
        category: of Python's warnings; None: it comes by a logger.
        logger: that gives it; "": it is one of Python's warnings.
    """

    message: str
    why: str
    category: type[Warning] | None = None
    logger: str = ""


KNOWN = (
    Known(
        "No CUDA runtime is found",
        "torch for CUDA on a machine without a GPU; MODEL.DEVICE says what is used instead",
        logger="torch.utils.cpp_extension",
    ),
    Known(
        "is_fx_tracing will return true for both",
        "Detectron2 asks it before an assertion on shapes, which holds either way",
        logger="torch.fx._symbolic_trace",
    ),
    Known(
        r"torch\.meshgrid: in an upcoming release",
        "Detectron2's anchors and points rely on the indexing that torch has today",
        UserWarning,
    ),
    Known(
        "The given buffer is not writable",
        "torch writes it of constants of its own in a .pt2 file, into which nothing is written",
        UserWarning,
    ),
    Known(
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",
        "torch's export of .pt2 and .onnx calls what torch itself has renamed",
        FutureWarning,
    ),
)


@dataclass(frozen=True)
class _Leave:
    """A filter of a logger that leaves messages out; equal ones are added once."""

    message: str

    def __call__(self, record: logging.LogRecord) -> bool:
        return not re.match(self.message, record.getMessage())


def leave_out_known_warnings() -> None:
    """Show none of :data:`KNOWN` from now on; calling it again changes nothing.

    Data-loading workers have the filters of the process that starts them.
    """
    for known in KNOWN:
        if known.category is not None:
            warnings.filterwarnings("ignore", known.message, known.category)
        else:
            logging.getLogger(known.logger).addFilter(_Leave(known.message))
