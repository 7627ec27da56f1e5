"""Results of a benchmark: tables, lines over multiply-adds, the authors' own targets, JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from tabulate import tabulate

from .memory import Memory
from .run_modes import IMAGE_BY_IMAGE, PLAN, PLAN_BF16, PUBLISHED, STATIC, CaseResult, Measurement

Peaks = Mapping[str, float]
"""Multiply-adds a second of matrix products: "float32" and "bfloat16"."""

_HEADERS = (
    "ms per image",
    "images/s",
    "times faster",
    "expected GFLOPs",
    "real GFLOPs",
    "GFLOPs/s",
    "of GEMM peak",
    "error",
)
_MIB = 2**20


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
        """One of "aim", "least" and "missed"."""
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


@dataclass(frozen=True)
class Line:
    """Times of one execution mode at one batch size, over several shares of closed gates.

    Attributes:
        mode: its name.
        batch: images of a batch.
        gflops: real cost per image, 10⁹ multiply-adds.
        milliseconds: medians per image, in the same order.
    """

    mode: str
    batch: int
    gflops: tuple[float, ...]
    milliseconds: tuple[float, ...]

    @property
    def fit(self) -> tuple[float, float] | None:
        """(milliseconds per 10⁹ multiply-adds, milliseconds at none), least squares.

        None with fewer than three different costs: a line through two says nothing of its fit.
        """
        apart = np.diff(np.sort(self.gflops)) > 1e-6 * max(self.gflops)
        if apart.sum() < 2:
            return None
        slope, intercept = np.polyfit(self.gflops, self.milliseconds, 1)
        return float(slope), float(intercept)

    @property
    def rate(self) -> float | None:
        """10⁹ multiply-adds a second by the line's slope; None if it has none or does not rise."""
        return 1e3 / self.fit[0] if self.fit is not None and self.fit[0] > 0 else None


def lines(results: Sequence[CaseResult]) -> list[Line]:
    """One line for every mode and batch size whose costs are known."""
    points: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for result in results:
        for row in result.rows:
            if row.real_gflops is not None:
                point = (row.real_gflops, 1e3 * result.per_image(row.mode))
                points.setdefault((result.case.batch, row.mode), []).append(point)
    found = []
    for (batch, mode), pairs in points.items():
        gflops, milliseconds = zip(*sorted(pairs), strict=True)
        found.append(Line(mode, batch, gflops, milliseconds))
    return found


def case_table(result: CaseResult, peaks: Peaks) -> str:
    """Every execution mode of one case; costs are per image."""
    case = result.case
    title = (
        f"batch {case.batch}, {case.size[0]}×{case.size[1]}, {case.closed:.0%} of the gates to "
        f"close, {result.closed:.1%} of those reached closed"
    )
    table = []
    for row in result.rows:
        numbers = _numbers(result, row, peaks)
        table.append([row.mode, *(numbers[header] for header in _HEADERS)])
    formats = ("g", ".1f", ".2f", ".2f", ".2f", ".2f", ".1f", ".0%", ".0e")
    text = tabulate(table, headers=("", *_HEADERS), floatfmt=formats, tablefmt="github")
    return f"{title}\n\n{text}\n"


def target_table(results: Sequence[CaseResult]) -> str:
    """What is to be reached, beside what was; empty if none of its cases ran."""
    table = []
    for line in targets(results):
        sign = "≤ " if line.at_most else ""
        bounds = (f"{sign}{line.least:g}", f"{sign}{line.aim:g}")
        table.append((line.case, *bounds, f"{line.measured:.2f}", line.verdict))
    if not table:
        return ""
    headers = ("against the published execution", "at least", "aim", "measured", "reached")
    return tabulate(table, headers=headers, tablefmt="github", disable_numparse=True) + "\n"


def fit_table(results: Sequence[CaseResult]) -> str:
    """Fitted lines of time over real cost; empty with fewer than three shares of closed gates."""
    table = [
        (line.batch, line.mode, line.rate, line.fit[1])
        for line in lines(results)
        if line.fit is not None
    ]
    if not table:
        return ""
    headers = ("batch", "", "GFLOPs/s by slope", "ms at 0 GFLOPs")
    return tabulate(table, headers=headers, floatfmt=".1f", tablefmt="github") + "\n"


def memory_table(memories: Sequence[Memory]) -> str:
    """Peaks in MiB."""
    table = [(m.mode, m.resident / _MIB, m.tensors / _MIB) for m in memories]
    headers = ("", "peak MiB", "live tensors at most, MiB")
    return tabulate(table, headers=headers, floatfmt=".0f", tablefmt="github") + "\n"


def as_numbers(
    results: Sequence[CaseResult], memories: Sequence[Memory], peaks: Peaks
) -> dict[str, object]:
    """Everything measured, ready for JSON; times of calls are seconds of the whole batch."""
    return {
        "gemm_gflops_per_s": {name: peak / 1e9 for name, peak in peaks.items()},
        "cases": [
            {
                **asdict(result.case),
                "closed_measured": result.closed,
                "modes": [
                    {
                        "mode": row.mode,
                        **_numbers(result, row, peaks),
                        "seconds": {**row.times.summary(), "all": list(row.times.seconds)},
                    }
                    for row in result.rows
                ],
            }
            for result in results
        ],
        "lines": [{**asdict(line), "fit": line.fit, "rate": line.rate} for line in lines(results)],
        "targets": [{**asdict(line), "reached": line.verdict} for line in targets(results)],
        "memory": [asdict(memory) for memory in memories],
    }


def _numbers(result: CaseResult, row: Measurement, peaks: Peaks) -> dict[str, float | None]:
    seconds = result.per_image(row.mode)
    rate = None if row.real_gflops is None else row.real_gflops / seconds
    peak = peaks["bfloat16" if row.half else "float32"] / 1e9
    values = (
        1e3 * seconds,
        1 / seconds,
        row.faster,
        row.expected_gflops,
        row.real_gflops,
        rate,
        None if rate is None else rate / peak,
        row.error,
    )
    return dict(zip(_HEADERS, values, strict=True))
