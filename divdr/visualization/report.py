"""One page about one or several runs: a single HTML file with its pictures inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..data import load_characters
from ..engine import Predictor, load_config
from ..errors import ConfigError
from ..experts.routing_warnings import routing_warnings
from .examples import ClassExample, Example, examples_section, gather_examples
from .expert_choices import ExpertChoices, box_mixture, choices_section, expert_choices
from .montage import nearest_to_centres
from .parts import Section, class_colours, count, draw, listing
from .results_section import (
    classes_section,
    curves_section,
    facts,
    modes_section,
    results_section,
)
from .routes_section import (
    characters_section,
    images_section,
    montage_section,
    plane_section,
    routes_section,
)
from .run_data import RouteData, RunData
from .sheet import write_sheet

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
    examples: Sequence[Example] | Sequence[ClassExample] = (),
    characters: Mapping[str, str] | None = None,
    choices: Mapping[str, ExpertChoices] | None = None,
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
        choices: of runs that are mixtures, by name.
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
    routed = any(run.routed for run in runs)
    sections = [
        results_section(runs, dataset_name),
        classes_section(runs, dataset_name),
        modes_section(runs),
        curves_section(runs),
        examples_section(examples, palette, class_names),
        choices_section(choices or {}),
    ]
    stored = [
        run for run in runs if run.routes_of(dataset_name) or run.result(dataset_name, "routing")
    ]
    if routed and not stored:
        words = "No run has stored gate activations on {}: evaluation stores them."
        sections.append(Section("Routes", [words.format(dataset_name)]))
    elif routed:
        sections += [
            routes_section(runs, dataset_name),
            images_section(runs, dataset_name),
            montage_section(runs, dataset_name),
            characters_section(runs, dataset_name, characters),
            plane_section(runs, dataset_name, characters),
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
        lead=_lead(runs, dataset_name, routed),
        sections=[section for section in sections if not _empty(section)],
        notes=notes,
        words=_WORDS if routed else (),
        facts=[facts(run) for run in runs],
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _lead(runs: Sequence[RunData], dataset_name: str, routed: bool) -> str:
    what = f"compares {count(len(runs), 'run')}" if len(runs) > 1 else "shows one run"
    names = listing([run.name for run in runs])
    seen = next((r for run in runs if (r := run.routes_of(dataset_name)) is not None), None)
    images = f" ({count(len(seen), 'image')})" if seen is not None else ""
    start = f"This page {what} ({names}) on {dataset_name}{images}: how accurate the network is"
    if not routed:
        return f"{start}, and what it computes for an image."
    return (
        f"{start}, what it computes for an image, and which route through the network each image "
        "takes."
    )


def _empty(section: Section) -> bool:
    return not (section.sentences or section.tables or section.pictures)


def report_from_runs(
    path: str | Path,
    runs: Mapping[str, str | Path],
    *,
    title: str,
    data_root: str | Path = "",
    examples: int = 8,
    notes: Sequence[str] = (),
    sheet: str | Path = "",
) -> Path:
    """Write the report of runs on the same data set, whether they are finished or not.

    Names and colours of classes are those in the first run's checkpoint. Where the data set is not
    registered or an image is gone, images are not shown, and a note says so; likewise for runs
    without weights.

    Args:
        path: the HTML file.
        runs: output folder by the name that the report calls the run; the first is what others
            are compared with.
        title: heading.
        data_root: folder of drawn street scenes, whose characters the report tells; "" for none.
        examples: images shown in full.
        notes: sentences for the end of the page.
        sheet: a picture to write beside it, see ``write_sheet``; "" is none.

    Raises:
        DataError: a folder holds nothing of a run, or a file of it is damaged.
    """
    loaded = [RunData.load(folder, name) for name, folder in runs.items()]
    told = list(notes)
    configs: dict[str, CfgNode] = {}
    predictors: dict[str, Predictor] = {}
    for name, folder in runs.items():
        cfg, problem = _config(Path(folder))
        if problem:
            told.append(f"{name}{problem}.")
        told.extend(f"{name}: {warning.text}" for warning in routing_warnings(folder))
        if cfg is None:
            continue
        configs[name] = cfg
        if cfg.MODEL.WEIGHTS:
            try:
                predictors[name] = Predictor(cfg)
            except ConfigError as error:  # of several tasks, none of which is named
                told.append(f"{name} is not run on images: {error}.")
    dataset = _dataset(configs, loaded)
    last = loaded[-1].routes_of(dataset)
    nearest = [] if last is None else _nearest(last)
    shown, reason = gather_examples(dataset, predictors, examples, nearest)
    metadata = next(iter(predictors.values())).metadata if predictors else None
    colours = None if metadata is None else class_colours(metadata)
    about: dict[str, Any] = {
        "dataset_name": dataset,
        "examples": shown,
        "palette": np.array(colours, dtype=np.uint8) if colours is not None else None,
        "class_names": [] if metadata is None else list(metadata.stuff_classes),
    }
    if sheet:
        write_sheet(sheet, loaded, **about)
    return write_report(
        path,
        loaded,
        title=title,
        characters=_characters(data_root) if data_root else None,
        choices={} if reason else _choices(configs, predictors),
        notes=[*told, *([f"No images are shown: {reason}."] if reason else [])],
        **about,
    )


def _config(folder: Path) -> tuple[CfgNode | None, str]:
    """The config of a run, with its newest weights as ``MODEL.WEIGHTS`` ("" if it has none), and
    what is wrong with the run, to be said after its name.
    """
    file, weights, latest = (
        folder / n for n in ("config.yaml", "model_final.pth", "last_checkpoint")
    )
    if not file.is_file():
        return None, " has no config.yaml, so that its model cannot be run"
    problem = ""
    if not weights.is_file():
        saved = latest.read_text(encoding="utf-8").strip() if latest.is_file() else ""
        weights = folder / saved
        if not weights.is_file():
            problem = " was not trained to its end, and no weights of it are there"
            return load_config(str(file), ["MODEL.WEIGHTS", ""]), problem
        problem = f" was not trained to its end: its predictions are those of {weights.name}"
    return load_config(str(file), ["MODEL.WEIGHTS", str(weights)]), problem


def _dataset(configs: Mapping[str, CfgNode], runs: Sequence[RunData]) -> str:
    for cfg in configs.values():
        for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
            return name
    return next((name for run in runs for name in run.results or {}), "no data set")


def _nearest(routes: RouteData) -> list[str]:
    """File names of the images whose routes are shown."""
    nearest = nearest_to_centres(routes.activations, routes.centres, routes.expert, 1)
    return [routes.file_names[i] for found in nearest for i in found]


def _choices(
    configs: Mapping[str, CfgNode], predictors: Mapping[str, Predictor]
) -> dict[str, ExpertChoices]:
    """Of the runs that are mixtures, as classifiers or box heads, and have one test set."""
    found = {}
    for name, predictor in predictors.items():
        mixes = predictor.classifies or box_mixture(configs[name])
        if mixes and len(configs[name].DATASETS.TEST) == 1:
            chosen = expert_choices(configs[name])
            if len(chosen.experts) > 1:
                found[name] = chosen
    return found


def _characters(root: str | Path) -> dict[str, str]:
    return {
        f"{stem}_leftImg8bit": character
        for split in load_characters(root).values()
        for stem, character in split.items()
    }
