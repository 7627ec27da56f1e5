"""A full disk, told in one sentence: the log files of a run, and all that it writes."""

from __future__ import annotations

import atexit
import contextlib
import errno
import logging
import sys
from collections.abc import Iterator

from ..errors import DivdrError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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


@contextlib.contextmanager
def telling_when_full(folder: str) -> Iterator[None]:
    """Name a run's folder where the block fails because the disk is full.

    Raises:
        DivdrError: it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DivdrError(
            f"the run in {folder} cannot write its files ({error.strerror}); its last good "
            "checkpoint stays"
        ) from error


def _close() -> None:
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for handler in {h for logger in loggers for h in getattr(logger, "handlers", ())}:
        stream = getattr(handler, "stream", None)
        if stream is None or stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            continue
        with contextlib.suppress(OSError, ValueError):
            stream.close()
