"""Ways to run a trained model, a table a run: dynamic, static experts, everything open."""

from __future__ import annotations

from collections.abc import Sequence

from ..engine.ways import WayFigures
from .parts import Entry, Section, Table, figures, fixed, signed
from .run_data import RunData

_CAPTION = (
    "The same weights run in several ways. Dynamic: every image decides its own route. Static "
    "experts: the gates of the first layers pick one of a few fixed routes. Milliseconds are the "
    "median of the whole model for one image, the ways taking turns; GFLOPs are real ones of the "
    "backbone. The small numbers are differences to dynamic."
)


def ways_section(runs: Sequence[RunData]) -> Section:
    """Build the tables; runs without static experts have none."""
    section = Section("Dynamic, static, all open")
    for run in runs:
        if run.ways:
            section.tables.append(_table(run.name, run.ways))
            section.sentences.append(_sentence(run.name, run.ways))
    return section


def _table(name: str, ways: Sequence[WayFigures]) -> Table:
    measures = list(ways[0].accuracy)
    header = [name, *(f"{m}, %" for m in measures), "real GFLOPs", "ms an image"]
    rows = []
    for way in ways:
        entries = []
        for measure in measures:
            value, first = way.accuracy[measure], ways[0].accuracy[measure]
            difference = "" if way is ways[0] else signed(round(value, 2) - round(first, 2), 2)
            entries.append(Entry(fixed(value, 2), difference))
        ratio = way.milliseconds / ways[0].milliseconds
        entries.append(Entry(figures(way.gflops, 4)))
        entries.append(
            Entry(fixed(way.milliseconds, 1), "" if way is ways[0] else f"× {fixed(ratio, 2)}")
        )
        rows.append((way.name, entries))
    return Table(_CAPTION, header, rows)


def _sentence(name: str, ways: Sequence[WayFigures]) -> str:
    fastest = min(ways, key=lambda way: way.milliseconds)
    return f"Of the ways to run {name}, the fastest is: {fastest.name}."
