"""What command lines of all programs share: numbers as options, and errors in one sentence."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable
from typing import Any

from .errors import DataError, DivdrError

INTERRUPTED = 130
"""Exit code of a program that was stopped by Ctrl-C."""


def report_errors(main: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator for a tool's ``main``: a user's errors are reported in one sentence, exit code 2.

    Likewise those of the file system, which name the file. Ctrl-C ends it with exit code 130 and
    what the interrupted part says of itself.
    """

    @functools.wraps(main)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return main(*args, **kwargs)
        except DivdrError as error:
            sentence = one_sentence(error)
        except OSError as error:
            if error.filename is None or error.strerror is None:
                raise
            sentence = f"{os.fspath(error.filename)}: {error.strerror}"
        except KeyboardInterrupt as stop:
            print(str(stop) or "stopped", file=sys.stderr, flush=True)
            sys.exit(INTERRUPTED)
        print(f"error: {sentence}", file=sys.stderr, flush=True)
        sys.exit(2)

    return guarded


def one_sentence(error: BaseException) -> str:
    """An error's own words; a data loader's worker puts its whole traceback before them.

    Of several problems with the data every one is reported, on a line of its own.
    """
    text = str(error).strip()
    marker = f"{type(error).__name__}: "
    if "Original Traceback" in text and marker in text:
        return text.rsplit(marker, 1)[1].strip().splitlines()[0]
    if isinstance(error, DataError) and len(error.problems) > 1:
        return text
    return text.splitlines()[0] if text else type(error).__name__


def at_least(low: float, kind: Callable[[str], Any] = int) -> Callable[[str], Any]:
    """A number of at least ``low``; ``kind`` makes it of the text, ``int`` or ``float``."""

    def number(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not value >= low:
            raise argparse.ArgumentTypeError(f"must be at least {low:g}, not {text}")
        return value

    return number
