"""Log files on a full disk."""

from __future__ import annotations

import atexit
import logging
import sys


def leave_full_logs_quietly() -> None:
    """Let lines that cannot be written to a log file go, without a traceback for each of them.

    A full disk is told once, by the checkpoint or table that cannot be written. Without this,
    every line of the log, and the end of the process, would tell it too.
    """
    logging.raiseExceptions = False
    # Detectron2 registered the closing of its log files before; this is done first.
    atexit.register(_close)


def _close() -> None:
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for handler in {h for logger in loggers for h in getattr(logger, "handlers", ())}:
        stream = getattr(handler, "stream", None)
        if stream is None or stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            continue
        try:
            stream.close()
        except (OSError, ValueError):
            pass
