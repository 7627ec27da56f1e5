"""Numbers as text, and sentences that say what numbers did."""

from __future__ import annotations

import math
from collections.abc import Sequence

MISSING = "–"
_MINUS = "−"


def figures(value: float | None, digits: int = 3) -> str:
    """A number with at least ``digits`` significant figures and no exponent in the usual range."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size < -4 or size >= 7:
        return f"{value:.{digits - 1}e}".replace("-", _MINUS)
    return fixed(value, max(digits - 1 - size, 0))


def fixed(value: float | None, decimals: int) -> str:
    """A number with a fixed number of decimals."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:.{decimals}f}"
    return text.replace("-", _MINUS) if float(text) else text.lstrip("-")


def signed(value: float, decimals: int) -> str:
    """A difference with its sign; ``±0`` where it rounds to nothing."""
    text = fixed(value, decimals)
    if float(text.replace(_MINUS, "-")) == 0:
        return "±" + text
    return text if text.startswith(_MINUS) else "+" + text


def change(name: str, first: float, last: float) -> str:
    """``inter rose from 1.20 to 2.31``, as the two numbers show after rounding."""
    before, after = figures(first), figures(last)
    if not (math.isfinite(first) and math.isfinite(last)):
        return f"{name} went from {before} to {after}"
    if before == after:
        return f"{name} stayed at {after}"
    return f"{name} {'rose' if last > first else 'fell'} from {before} to {after}"


def count(number: int, noun: str, plural: str = "") -> str:
    """``1 image``, ``3 images``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def listing(items: Sequence[str]) -> str:
    """``A``, ``A and B``, ``A, B and C``."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"
