"""One page about one or several runs: a single HTML file with its pictures inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from .curves_section import curves_section
from .experts_section import characters_section, images_section
from .overlay import Example, examples_section
from .parts import Section, count, draw, listing
from .results_section import results_section, ways_section
from .routes_section import montage_section, plane_section, routes_section
from .run_data import RunData

PICTURE_BYTES = 5_600_000
_WORDS = (
    ("gate", "a number from 0 to 1 for each transform of a cell; at 0 the transform is closed."),
    ("gate activation A(x)", "all gates of an image in one vector."),
    (
        "transform",
        "a way from a cell to the next layer: keep the scale, go up to a finer one, or go down to "
        "a coarser one.",
    ),
    ("reached", "a cell is reached by an image when some open path leads into it."),
    ("expected cost", "gates × multiply-adds, the differentiable cost that training sees."),
    ("real cost", "the multiply-adds that actually run."),
    (
        "centre, expert",
        "a K-means centre of the gate activations, and the sub-network it stands for.",
    ),
    (
        "inter, intra",
        "mean distance between centres, and within their clusters: of the experts that training "
        "found, or of a refit, a new K-means over the evaluated images.",
    ),
)


def write_report(
    path: str | Path,
    runs: Sequence[RunData],
    *,
    title: str,
    dataset_name: str,
    examples: Sequence[Example] = (),
    characters: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    palette: np.ndarray | None = None,
    class_names: Sequence[str] = (),
) -> Path:
    """Write the report.

    What a run does not have is left out, and a sentence says so. Every statement about the runs
    comes from their numbers.

    Args:
        path: the HTML file; its folder is made.
        runs: one or more, the first being what others are compared with.
        title: heading of the page.
        dataset_name: the data set whose evaluation is shown.
        examples: images shown in full with predictions by run name.
        characters: scene character by image file name without folder and ending.
        notes: sentences for the end of the page.
        palette: (C, 3) uint8 class colours; made up if None.
        class_names: C names for the legend.

    Returns:
        The path.

    Raises:
        ValueError: no runs, or two of the same name.
        DataError: an image of the data set is damaged.
    """
    names = [run.name for run in runs]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"a report needs runs of different names, at least one; got {names}")
    sections = [
        results_section(runs, dataset_name),
        ways_section(runs),
        curves_section(runs),
        examples_section(examples, palette, class_names),
        images_section(runs, dataset_name),
        routes_section(runs, dataset_name),
        plane_section(runs, dataset_name, characters),
        characters_section(runs, dataset_name, characters),
        montage_section(runs, dataset_name),
    ]
    draw([picture for section in sections for picture in section.pictures], PICTURE_BYTES)
    environment = Environment(
        loader=PackageLoader("divdr", "visualization"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        title=title,
        lead=_lead(runs, dataset_name),
        sections=[section for section in sections if not _empty(section)],
        notes=notes,
        words=_WORDS,
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _lead(runs: Sequence[RunData], dataset_name: str) -> str:
    what = f"compares {count(len(runs), 'run')}" if len(runs) > 1 else "shows one run"
    names = listing([run.name for run in runs])
    seen = next((r for run in runs if (r := run.routes_of(dataset_name)) is not None), None)
    images = f" ({count(len(seen), 'image')})" if seen is not None else ""
    return (
        f"This page {what} ({names}) on {dataset_name}{images}: how accurate the network is, what "
        "it computes for an image, and which route through the network each image takes."
    )


def _empty(section: Section) -> bool:
    return not (section.sentences or section.tables or section.pictures)
