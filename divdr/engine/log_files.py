"""Log files on a full disk."""

from __future__ import annotations

import atexit
import contextlib
import logging
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_when_full() -> Iterator[None]:
    """Let lines go that log files set up inside the block cannot take any more.

    A full disk is told once, by the checkpoint or table that cannot be written. Without this,
    every line of the log, and the end of the process, would tell it too, by a traceback.
    """
    logging.raiseExceptions = False
    yield
    # Detectron2 has registered the closing of its log files now; what is registered later runs
    # earlier.
    atexit.register(_close)


def _close() -> None:
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for handler in {h for logger in loggers for h in getattr(logger, "handlers", ())}:
        stream = getattr(handler, "stream", None)
        if stream is None or stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            continue
        with contextlib.suppress(OSError, ValueError):
            stream.close()
