"""One page about one or several runs: a single HTML file with its pictures inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..data import load_characters
from ..data.coco_json import reading
from ..engine import Predictor, load_config
from ..errors import DataError
from ..image_files import read_image, read_labels
from .overlay import (
    CONFIDENCE,
    Example,
    drawing_size,
    examples_section,
    prediction_picture,
    reduced,
    semantic_labels,
)
from .parts import Section, class_colours, count, draw, listing
from .results_section import curves_section, modes_section, results_section
from .routes_section import (
    characters_section,
    images_section,
    montage_section,
    plane_section,
    routes_section,
)
from .run_data import RunData
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
        modes_section(runs),
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
    """Write the report of runs on the same data set.

    Names and colours of classes are those in the first run's checkpoint. Where the data set is not
    registered or an image is gone, images are not shown, and a note says so.

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
        DataError: a folder holds no finished run.
    """
    predictors = {name: _predictor(Path(folder)) for name, folder in runs.items()}
    first = next(iter(predictors.values()))
    datasets = first.cfg.DATASETS.TEST or first.cfg.DATASETS.TRAIN
    dataset = datasets[0] if datasets else "no data set"
    metadata = first.metadata
    colours = class_colours(metadata)
    shown, reason = _examples(dataset, predictors, examples)
    loaded = [RunData.load(folder, name) for name, folder in runs.items()]
    about: dict[str, Any] = {
        "dataset_name": dataset,
        "examples": shown,
        "characters": _characters(data_root) if data_root else None,
        "palette": np.array(colours, dtype=np.uint8) if colours is not None else None,
        "class_names": list(metadata.stuff_classes),
    }
    if sheet:
        write_sheet(sheet, loaded, **about)
    return write_report(
        path,
        loaded,
        title=title,
        notes=[*notes, *([f"No images are shown: {reason}."] if reason else [])],
        **about,
    )


def _predictor(folder: Path) -> Predictor:
    config, weights = folder / "config.yaml", folder / "model_final.pth"
    for file in (config, weights):
        if not file.is_file():
            raise DataError(f"{folder} holds no finished run: {file.name} is missing")
    return Predictor(load_config(str(config), ["MODEL.WEIGHTS", str(weights)]))


def _examples(
    dataset: str, predictors: Mapping[str, Predictor], count: int
) -> tuple[list[Example], str]:
    """Examples, and why there are none."""
    if any(predictor.classifies for predictor in predictors.values()):
        return [], "these runs classify them"
    if dataset not in DatasetCatalog.list():
        return [], f"data set {dataset} is not registered here"
    try:
        with reading([dataset]):
            dicts = DatasetCatalog.get(dataset)
        chosen = dicts[:: max(1, len(dicts) // max(1, count))][:count]
        return [_example(item, predictors) for item in chosen], ""
    except DataError as error:
        return [], str(error)


def _example(item: Mapping[str, Any], predictors: Mapping[str, Predictor]) -> Example:
    image = read_image(item["file_name"], "RGB")
    size = drawing_size(*image.shape[:2])
    small = reduced(image, size)
    predictions = {}
    for name, predictor in predictors.items():
        output = predictor(image, size)
        if "sem_seg" in output and not {"instances", "panoptic_seg"} & {*output}:
            predictions[name] = semantic_labels(output).numpy()
        else:
            predictions[name] = prediction_picture(
                small, output, predictor.metadata, confidence=CONFIDENCE
            )
    truth = item.get("sem_seg_file_name")
    return Example(
        name=Path(item["file_name"]).stem.removesuffix("_leftImg8bit"),
        image=small,
        truth=None if truth is None else _labels(truth, size),
        predictions=predictions,
    )


def _labels(path: str, size: tuple[int, int]) -> np.ndarray:
    labels = read_labels(path)
    if labels.shape == size:
        return labels
    rows, columns = (np.arange(n) * have // n for n, have in zip(size, labels.shape, strict=True))
    return labels[np.ix_(rows, columns)]


def _characters(root: str | Path) -> dict[str, str]:
    return {
        f"{stem}_leftImg8bit": character
        for split in load_characters(root).values()
        for stem, character in split.items()
    }
