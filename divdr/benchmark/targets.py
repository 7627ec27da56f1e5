"""What inference plans are to reach against the published way of running, and what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .ways import IMAGE_BY_IMAGE, PLAN, PLAN_BF16, PUBLISHED, STATIC, CaseResult


@dataclass(frozen=True)
class Target:
    """One line of the table.

    Attributes:
        case: in words.
        least: the bound that must hold.
        aim: the bound that is aimed at.
        measured: what came out.
        at_most: whether the bounds are from above.
    """

    case: str
    least: float
    aim: float
    measured: float
    at_most: bool = False

    @property
    def verdict(self) -> str:
        """ "aim", "least" or "missed"."""
        sign = -1 if self.at_most else 1
        if sign * self.measured >= sign * self.aim:
            return "aim"
        return "least" if sign * self.measured >= sign * self.least else "missed"


def targets(results: Sequence[CaseResult]) -> list[Target]:
    """The lines whose cases ran: batch 1 and a larger batch, all open to 80 % closed."""
    single = {r.case.closed: r for r in results if r.case.batch == 1}
    several = {r.case.closed: r for r in results if r.case.batch > 1}
    lines = [
        Target(f"batch 1, {closed:.0%} closed", 2.5, 3.2, _ratio(result, PUBLISHED, PLAN))
        for closed, result in sorted(single.items())
    ]
    if (mixed := several.get(0.8)) is not None:
        words = f"batch {mixed.case.batch}, routes differ, 80% closed, against"
        batched = _ratio(mixed, PUBLISHED, PLAN)
        alone = _ratio(mixed, IMAGE_BY_IMAGE, PLAN)
        lines.append(Target(f"{words} its batched mode", 4.0, 6.0, batched))
        lines.append(Target(f"{words} its faster mode", 2.5, 3.2, min(batched, alone)))
    if (sparse := single.get(0.8)) is not None:
        fixed = _ratio(sparse, PUBLISHED, STATIC)
        lines.append(Target("fixed route, batch 1, 80% closed", 3.3, 4.5, fixed))
    if (dense := single.get(0.0)) is not None:
        half = _ratio(dense, PUBLISHED, PLAN_BF16)
        lines.append(Target("bf16, batch 1, all open", 4.0, 6.5, half))
    if sparse is not None and dense is not None:
        time = sparse.per_image(PLAN) / dense.per_image(PLAN)
        words = "time(80% closed) / time(0%) over MACs(80%) / MACs(0%), plan, batch 1"
        lines.append(Target(words, 1.25, 1.1, time / (_macs(sparse) / _macs(dense)), at_most=True))
    return lines


def _ratio(result: CaseResult, slow: str, fast: str) -> float:
    return result.per_image(slow) / result.per_image(fast)


def _macs(result: CaseResult) -> float:
    row = result.row(PLAN)
    assert row is not None
    assert row.real_gflops is not None
    return row.real_gflops
