"""The report of finished runs, with their models' predictions on some images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import read_image

from ..data.streetscapes import load_characters
from ..engine import Predictor, load_config
from ..errors import DataError
from .classes import class_colours
from .example import Example
from .prediction import semantic_labels
from .report import write_report
from .run_data import RunData


def report_from_runs(
    path: str | Path,
    runs: Mapping[str, str | Path],
    *,
    title: str,
    data_root: str | Path = "",
    examples: int = 8,
    notes: Sequence[str] = (),
) -> Path:
    """Write the report of runs on the same segmentation data set.

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
    dataset = first.cfg.DATASETS.TEST[0]
    metadata = first.metadata
    colours = class_colours(metadata)
    return write_report(
        path,
        [RunData.load(folder, name) for name, folder in runs.items()],
        title=title,
        dataset_name=dataset,
        examples=_examples(dataset, predictors, examples),
        characters=_characters(data_root) if data_root else None,
        notes=notes,
        palette=np.array(colours, dtype=np.uint8) if colours is not None else None,
        class_names=list(getattr(metadata, "stuff_classes", [])),
    )


def _predictor(folder: Path) -> Predictor:
    config, weights = folder / "config.yaml", folder / "model_final.pth"
    for file in (config, weights):
        if not file.is_file():
            raise DataError(f"{folder} holds no finished run: {file.name} is missing")
    return Predictor(load_config(str(config), ["MODEL.WEIGHTS", str(weights)]))


def _examples(dataset: str, predictors: Mapping[str, Predictor], count: int) -> list[Example]:
    dicts = DatasetCatalog.get(dataset)
    step = max(1, len(dicts) // max(1, count))
    found = []
    for item in dicts[::step][:count]:
        image = read_image(item["file_name"], "RGB")
        truth = item.get("sem_seg_file_name")
        found.append(
            Example(
                name=Path(item["file_name"]).stem.removesuffix("_leftImg8bit"),
                image=image,
                truth=None if truth is None else read_image(truth, None),
                predictions={
                    name: semantic_labels(predictor(image)).numpy()
                    for name, predictor in predictors.items()
                },
            )
        )
    return found


def _characters(root: str | Path) -> dict[str, str]:
    return {
        f"{stem}_leftImg8bit": character
        for split in load_characters(root).values()
        for stem, character in split.items()
    }
