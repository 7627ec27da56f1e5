"""Images of a data set in full, with what each run finds in them beside the truth."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog
from matplotlib.figure import Figure

from ..data.coco_json import reading
from ..engine import Predictor
from ..errors import DataError
from ..image_files import read_image, read_labels
from .overlay import side_by_side_figure
from .parts import Picture, Section, default_palette, fixed, listing
from .predictions import (
    CONFIDENCE,
    Colour,
    best_classes,
    draw_output,
    draw_truth,
    drawing_size,
    reduced,
    semantic_labels,
)

RIGHT, WRONG = "#1a7f37", "#c62828"
_CLASSIFIED = 24  # images of a classifier's examples


@dataclass(frozen=True)
class Example:
    """An image that the report shows in full.

    Attributes:
        name: text above the image.
        image: (H, W, 3) uint8.
        truth: (H, W) integer labels, or a picture (H', W', 3) uint8; None if not known.
        predictions: likewise for each run; a run may be missing.
        legend: colours by name of what is in the pictures.
        file_name: of the image.
    """

    name: str
    image: np.ndarray
    truth: np.ndarray | None
    predictions: Mapping[str, np.ndarray]
    legend: Mapping[str, Colour] = field(default_factory=dict)
    file_name: str = ""


@dataclass(frozen=True)
class ClassExample:
    """An image whose class is told.

    Attributes:
        image: (H, W) or (H, W, 3) uint8.
        truth: name of its class.
        predictions: for each run the name of the likeliest class, and its score from 0 to 1.
    """

    image: np.ndarray
    truth: str
    predictions: Mapping[str, tuple[str, float]]


def gather_examples(
    dataset: str,
    predictors: Mapping[str, Predictor],
    count: int,
    wanted: Collection[str] = (),
) -> tuple[list[Example] | list[ClassExample], str]:
    """Run models on some images of a data set, evenly spread over it.

    Args:
        dataset: name in the catalog.
        predictors: by name of the run.
        count: images, at most; of a classifier some more, as they are small.
        wanted: file names of images to show first.

    Returns:
        The examples, and why there are none.
    """
    if not predictors:
        return [], "no run has weights"
    if dataset not in DatasetCatalog.list():
        return [], f"data set {dataset} is not registered here"
    classify = [predictor.classifies for predictor in predictors.values()]
    if any(classify) and not all(classify):
        return [], "some of the runs classify images, and others find things in them"
    try:
        with reading([dataset]):
            dicts = DatasetCatalog.get(dataset)
        number = max(count, _CLASSIFIED) if any(classify) else count
        places = np.linspace(0, len(dicts) - 1, min(number, len(dicts))).round().astype(int)
        chosen = [item for item in dicts if item.get("file_name") in wanted]
        chosen += [dicts[i] for i in places if dicts[i].get("file_name") not in wanted]
        chosen = chosen[: max(number, len(wanted))]
        if any(classify):
            return [_classified(item, predictors) for item in chosen], ""
        return [_example(item, predictors) for item in chosen], ""
    except DataError as error:
        return [], str(error)


def _example(item: Mapping[str, Any], predictors: Mapping[str, Predictor]) -> Example:
    image = read_image(item["file_name"], "RGB")
    size = drawing_size(*image.shape[:2])
    small = reduced(image, size)
    predictions: dict[str, np.ndarray] = {}
    legend: dict[str, Colour] = {}
    for name, predictor in predictors.items():
        output = predictor(image, size)
        if "sem_seg" in output and not {"instances", "panoptic_seg"} & {*output}:
            predictions[name] = semantic_labels(output).numpy()
        else:
            drawn = draw_output(small, output, predictor.metadata, confidence=CONFIDENCE)
            predictions[name] = drawn.picture
            legend |= drawn.legend
    metadata = next(iter(predictors.values())).metadata
    truth = None
    if "sem_seg_file_name" in item and not legend and "pan_seg_file_name" not in item:
        truth = _labels(item["sem_seg_file_name"], size)
    else:
        known = draw_truth(small, {**item, **_size(image)}, metadata)
        if known is not None:
            truth = known.picture
            legend |= known.legend
    name = Path(item["file_name"]).stem.removesuffix("_leftImg8bit")
    return Example(name, small, truth, predictions, legend, str(item["file_name"]))


def _size(image: np.ndarray) -> dict[str, int]:
    return {"height": image.shape[0], "width": image.shape[1]}


def _labels(path: str, size: tuple[int, int]) -> np.ndarray:
    labels = read_labels(path)
    if labels.shape == size:
        return labels
    rows, columns = (np.arange(n) * have // n for n, have in zip(size, labels.shape, strict=True))
    return labels[np.ix_(rows, columns)]


def _classified(item: Mapping[str, Any], predictors: Mapping[str, Predictor]) -> ClassExample:
    image = item["pixels"] if "pixels" in item else read_image(item["file_name"], "RGB")
    predictions = {
        name: best_classes(predictor(image), predictor.metadata.classes, 1)[0]
        for name, predictor in predictors.items()
    }
    names = next(iter(predictors.values())).metadata.classes
    label = int(item["label"])
    return ClassExample(image, names[label] if label < len(names) else str(label), predictions)


def examples_section(
    examples: Sequence[Example] | Sequence[ClassExample],
    palette: np.ndarray | None,
    class_names: Sequence[str],
) -> Section:
    """Build one picture with a row an example; of a classifier with a place for each."""
    section = Section("Examples")
    if not examples:
        section.sentences.append("No example images were given.")
        return section
    classified = [each for each in examples if isinstance(each, ClassExample)]
    if classified:
        section.pictures.append(_class_picture(classified))
        return section
    shown = [each for each in examples if isinstance(each, Example)]
    section.pictures.append(
        Picture(examples_figure(shown, palette, class_names), _words(shown), "wide")
    )
    return section


def examples_figure(
    examples: Sequence[Example], palette: np.ndarray | None, class_names: Sequence[str]
) -> Figure:
    """A row an example: image, predictions, truth; and a legend."""
    if palette is None:
        palette = default_palette(max(len(class_names), _classes(examples)))
    legend: dict[str, Colour] = {}
    for example in examples:
        legend |= example.legend
    return side_by_side_figure(
        [example.image for example in examples],
        [example.predictions for example in examples],
        [example.truth for example in examples],
        palette,
        [example.name for example in examples],
        class_names,
        legend,
    )


def _words(examples: Sequence[Example]) -> str:
    words = "From left to right: the input, what each run predicts, and the truth where known."
    agreement = _agreement(examples)
    words += f" {agreement}" if agreement else ""
    if _maps(examples):
        return f"{words} Black pixels belong to no class."
    return f"{words} Detections of a score below {CONFIDENCE:g} are left out."


def _class_picture(examples: Sequence[ClassExample]) -> Picture:
    runs = list(dict.fromkeys(run for each in examples for run in each.predictions))
    columns = min(8, len(examples))
    rows = math.ceil(len(examples) / columns)
    height = 1.05 + 0.18 * (1 + len(runs))
    figure = Figure(figsize=(1.35 * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.set_axis_off()
    for axis, example in zip(axes, examples, strict=False):
        axis.imshow(example.image, cmap="gray", interpolation="nearest")
        axis.set_title(f"true: {example.truth}", fontsize=8, loc="left")
        for line, run in enumerate(runs):
            if run not in example.predictions:
                continue
            name, score = example.predictions[run]
            said = f"{name} ({100 * score:.0f} %)"
            axis.annotate(
                said if len(runs) == 1 else f"{run}: {said}",
                (0.0, 0.0),
                (0, -10 - 11 * line),
                xycoords="axes fraction",
                textcoords="offset points",
                fontsize=8,
                color=RIGHT if name == example.truth else WRONG,
            )
    right = {
        run: sum(e.predictions.get(run, ("", 0))[0] == e.truth for e in examples) for run in runs
    }
    found = listing([f"{run} {number} of {len(examples)}" for run, number in right.items()])
    words = (
        f"Images with their true class, and below what each run takes them for: right are {found}."
    )
    return Picture(figure, words, "wide")


def _maps(examples: Sequence[Example]) -> list[np.ndarray]:
    """Label maps, predicted and true; not pictures of instances."""
    maps = [m for e in examples for m in (*e.predictions.values(), e.truth)]
    return [m for m in maps if m is not None and m.ndim == 2]


def _classes(examples: Sequence[Example]) -> int:
    return 1 + max((int(m[m < 255].max(initial=0)) for m in _maps(examples)), default=0)


def _agreement(examples: Sequence[Example]) -> str:
    right: dict[str, list[int]] = {}
    for example in examples:
        if example.truth is None or example.truth.ndim != 2:
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
