"""Types of command-line options: numbers with a bound, lists of them, devices.

Made for argparse's ``type``: what they raise becomes its one sentence, with the option's name.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch


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


def listed(number: Callable[[str], Any], count: int | None = None) -> Callable[[str], list]:
    """Numbers with commas between them; ``count`` of them, or any number from one on."""

    def numbers(text: str) -> list:
        parts = text.split(",")
        if count is not None and len(parts) != count:
            raise argparse.ArgumentTypeError(f"{count} numbers are wanted, not {text!r}")
        return [number(part) for part in parts]

    return numbers


def device(text: str) -> str:
    """The name of a device that is there."""
    try:
        kind = torch.device(text).type
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text!r} is unknown; it is cuda or cpu") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(f"{text} needs a GPU, and there is none here")
    return text
