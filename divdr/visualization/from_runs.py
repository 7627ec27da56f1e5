"""The report of finished runs, with their models' predictions on some images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog

from ..data import load_characters
from ..data.coco_json import reading
from ..engine import Predictor, load_config
from ..errors import DataError
from ..image_files import read_image, read_labels
from .overlay import Example, drawing_size, prediction_picture, reduced, semantic_labels
from .parts import class_colours
from .report import write_report
from .run_data import RunData

_CONFIDENCE = 0.5  # least score of a detection that is drawn


def report_from_runs(
    path: str | Path,
    runs: Mapping[str, str | Path],
    *,
    title: str,
    data_root: str | Path = "",
    examples: int = 8,
    notes: Sequence[str] = (),
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
    return write_report(
        path,
        [RunData.load(folder, name) for name, folder in runs.items()],
        title=title,
        dataset_name=dataset,
        examples=shown,
        characters=_characters(data_root) if data_root else None,
        notes=[*notes, *([f"No images are shown: {reason}."] if reason else [])],
        palette=np.array(colours, dtype=np.uint8) if colours is not None else None,
        class_names=list(metadata.stuff_classes),
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
                small, output, predictor.metadata, confidence=_CONFIDENCE
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
