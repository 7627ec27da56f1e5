"""Time over multiply-adds: a panel a batch size, a line a way of running a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from divdr.benchmark import Line

from .parts import MARKERS, colour


def draw_benchmark(path: str | Path, lines: Sequence[Line], title: str) -> None:
    """Save points, fitted lines and, in the legends, what their slopes and intercepts say.

    Args:
        path: the picture to write; its ending tells the format.
        lines: times of ways of running, at any number of batch sizes, at least one.
        title: above everything, such as the machine.
    """
    batches = sorted({line.batch for line in lines})
    ways = list(dict.fromkeys(line.way for line in lines))
    figure = Figure(figsize=(7.2 * len(batches), 5.4), layout="constrained")
    panels = figure.subplots(1, len(batches), squeeze=False)[0]
    for axes, batch in zip(panels, batches, strict=True):
        for line in lines:
            if line.batch == batch:
                _draw(axes, line, ways.index(line.way))
        axes.set_title(f"batch {batch}")
        axes.set_xlabel("real cost per image, GFLOPs (10⁹ multiply-adds)")
        axes.set_ylabel("time per image, ms")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc="upper left", title="slope and time at no cost")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def _draw(axes: Axes, line: Line, number: int) -> None:
    shade, marker = colour(number), MARKERS[number % len(MARKERS)]
    label = line.way
    if line.fit is not None:
        slope, intercept = line.fit
        rate = "flat" if line.rate is None else f"{line.rate:.0f} GFLOPs/s"
        label = f"{line.way}: {rate}, {intercept:+.0f} ms"
        ends = np.array([0.0, max(line.gflops)])
        axes.plot(ends, slope * ends + intercept, color=shade, linewidth=1.2)
    axes.plot(line.gflops, line.milliseconds, marker, color=shade, label=label)
