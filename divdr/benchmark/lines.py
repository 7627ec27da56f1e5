"""Time as a line over multiply-adds: how fast a way of running is, and what it costs beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .ways import CaseResult


@dataclass(frozen=True)
class Line:
    """Times of one way of running at one batch size, over several shares of closed gates.

    Attributes:
        way: its name.
        batch: images of a batch.
        gflops: real cost per image, 10⁹ multiply-adds.
        milliseconds: medians per image, in the same order.
    """

    way: str
    batch: int
    gflops: tuple[float, ...]
    milliseconds: tuple[float, ...]

    @property
    def fit(self) -> tuple[float, float] | None:
        """(milliseconds per 10⁹ multiply-adds, milliseconds at none), least squares.

        None with fewer than two different costs.
        """
        if np.ptp(self.gflops) <= 1e-6 * max(self.gflops):
            return None
        slope, intercept = np.polyfit(self.gflops, self.milliseconds, 1)
        return float(slope), float(intercept)

    @property
    def rate(self) -> float | None:
        """10⁹ multiply-adds a second by the line's slope; None if it has none or does not rise."""
        return 1e3 / self.fit[0] if self.fit is not None and self.fit[0] > 0 else None


def lines(results: Sequence[CaseResult]) -> list[Line]:
    """One line for every way and batch size whose costs are known."""
    points: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for result in results:
        for row in result.rows:
            if row.real_gflops is not None:
                point = (row.real_gflops, 1e3 * result.per_image(row.way))
                points.setdefault((result.case.batch, row.way), []).append(point)
    found = []
    for (batch, way), pairs in points.items():
        gflops, milliseconds = zip(*sorted(pairs), strict=True)
        found.append(Line(way, batch, gflops, milliseconds))
    return found
