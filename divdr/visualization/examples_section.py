"""Inputs beside what the runs predict and what is true."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .overlay import Example, side_by_side_figure
from .parts import Picture, Section, default_palette, fixed, listing


def examples_section(
    examples: Sequence[Example], palette: np.ndarray | None, class_names: Sequence[str]
) -> Section:
    """Build one picture with a row an example."""
    section = Section("Examples")
    if not examples:
        section.sentences.append("No example images were given.")
        return section
    if palette is None:
        palette = default_palette(max(len(class_names), _classes(examples)))
    figure = side_by_side_figure(
        [example.image for example in examples],
        [example.predictions for example in examples],
        [example.truth for example in examples],
        palette,
        [example.name for example in examples],
        class_names,
    )
    caption = "From left to right: the input, what each run predicts, and the truth where known."
    agreement = _agreement(examples)
    caption += f" {agreement}" if agreement else ""
    if _maps(examples):
        caption += " Black pixels belong to no class."
    section.pictures.append(Picture(figure, caption, "wide"))
    return section


def _maps(examples: Sequence[Example]) -> list[np.ndarray]:
    """Label maps, predicted and true; not pictures of instances."""
    maps = [m for e in examples for m in (*e.predictions.values(), e.truth)]
    return [m for m in maps if m is not None and m.ndim == 2]


def _classes(examples: Sequence[Example]) -> int:
    return 1 + max((int(m[m < 255].max(initial=0)) for m in _maps(examples)), default=0)


def _agreement(examples: Sequence[Example]) -> str:
    right: dict[str, list[int]] = {}
    for example in examples:
        if example.truth is None:
            continue
        known = (example.truth >= 0) & (example.truth != 255)
        for run, labels in example.predictions.items():
            if labels.ndim != 2:
                continue
            found = right.setdefault(run, [0, 0])
            found[0] += int((labels == example.truth)[known].sum())
            found[1] += int(known.sum())
    parts = [f"{run} {fixed(100 * r / n, 1)} %" for run, (r, n) in right.items() if n]
    return f"Pixels of these images that agree with the truth: {listing(parts)}." if parts else ""
