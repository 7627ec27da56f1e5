"""Annotation files in COCO's format that nobody would write, and what must come of them.

See ``tests/fuzz/run.py`` for as many as there is time for.
"""

from __future__ import annotations

import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances
from hypothesis import strategies as st
from PIL import Image

from divdr import get_divdr_config
from divdr.data import build_test_loader, build_train_loader, check_data
from divdr.errors import DivdrError
from divdr.evaluation import build_task_evaluator

SECONDS = 10.0
"""Longest that one file may take, on a busy machine; on a quiet one it takes 0.1."""

NAME = "fuzzed_annotations"
SIZES = ((48, 32), (40, 40), (32, 48))  # width, height

CONTENT: dict[str, Any] = {
    "info": {"year": 2020},
    "licenses": [],
    "images": [
        {"id": n, "file_name": f"{n}.png", "width": width, "height": height}
        for n, (width, height) in enumerate(SIZES, 1)
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    "annotations": [
        {
            "id": n,
            "image_id": 1 + n % 3,
            "category_id": 3 if n % 2 else 7,
            "bbox": [2 + n, 3, 12, 10 + n],
            "area": 12 * (10 + n),
            "iscrowd": 0,
            "segmentation": [[2 + n, 3, 14 + n, 3, 14 + n, 13 + n, 2 + n, 13 + n]],
        }
        for n in range(1, 6)
    ],
}

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 9),
    st.sampled_from([0, -1, 10**30, 1e308, 0.5, math.nan, math.inf]),
    st.sampled_from(["", "1", "3", "1.png", "none.png", "../1.png", "cat", "é"]),
    st.sampled_from([[], {}, [None], [[]], [1, 2], [0, 0, 0, 0], [1, 2, 3, 4], [-5, -5, 1, 1]]),
    st.sampled_from([{"size": [32, 48], "counts": "zz"}, {"size": [32, 48], "counts": [1536]}]),
)


@st.composite
def examples(draw: st.DrawFn) -> list[tuple[tuple, str, Any]]:
    """Up to three places of the file, and what is done there: remove, replace or repeat."""
    found = []
    for _ in range(draw(st.integers(1, 3))):
        place: list = []
        node: Any = CONTENT
        while isinstance(node, dict | list) and node and (not place or draw(st.integers(0, 9))):
            keys = sorted(node) if isinstance(node, dict) else range(len(node))
            key = draw(st.sampled_from(keys))
            place.append(key)
            node = node[key]
        action = draw(st.sampled_from(["replace", "remove", "repeat"]))
        found.append((tuple(place), action, draw(VALUES) if action == "replace" else None))
    return found


def changed(actions: list[tuple[tuple, str, Any]]) -> dict[str, Any]:
    """The file's content after the changes; those whose place is gone do nothing."""
    content = copy.deepcopy(CONTENT)
    for place, action, value in actions:
        node: Any = content
        try:
            for key in place[:-1]:
                node = node[key]
            node[place[-1]]
        except (KeyError, IndexError, TypeError):
            continue
        if isinstance(node, str) or not isinstance(node, dict | list):
            continue
        if action == "replace":
            node[place[-1]] = value
        elif action == "remove":
            del node[place[-1]]
        elif isinstance(node, list):
            node.insert(place[-1], copy.deepcopy(node[place[-1]]))
    return content


def check_one(actions: list[tuple[tuple, str, Any]], folder: Path) -> bool:
    """Whether a changed file is either reported in a sentence, or trains and evaluates rightly.

    Args:
        actions: of :func:`examples`.
        folder: takes the files.

    Returns:
        Whether it is used.

    Raises:
        AssertionError: neither, or it takes too long.
    """
    content = changed(actions)
    path = folder / "fuzzed.json"
    path.write_text(json.dumps(content))
    for n, size in enumerate(SIZES, 1):
        if not (folder / f"{n}.png").is_file():
            Image.new("RGB", size).save(folder / f"{n}.png")
    for catalog in (DatasetCatalog, MetadataCatalog):
        if NAME in catalog.list():
            catalog.remove(NAME)
    register_coco_instances(NAME, {}, str(path), str(folder))
    cfg = get_divdr_config()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.MASK_ON = "GeneralizedRCNN", True
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (NAME,)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (32,), 32
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH, cfg.SEED = 0, 1, 0
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    started = time.monotonic()
    try:
        check_data(cfg)
    except DivdrError as error:
        for reported in getattr(error, "problems", (str(error),)):
            assert str(path) in reported or ".png" in reported or NAME in reported, reported
            assert "\n" not in reported
        assert time.monotonic() - started < SECONDS
        return False
    train = iter(build_train_loader(cfg))
    for _ in range(4):
        next(train)
    _evaluate(cfg, content, folder)
    assert time.monotonic() - started < SECONDS
    return True


def _evaluate(cfg: Any, content: dict[str, Any], folder: Path) -> None:
    """Predict exactly what the file says: AP must be 100."""
    evaluator = build_task_evaluator(NAME, str(folder / "out"), cfg)
    evaluator.reset()
    truth: dict[Any, list[dict]] = {}
    for entry in content.get("annotations", []):
        if not entry["iscrowd"]:
            truth.setdefault(entry["image_id"], []).append(entry)
    numbers = {
        c["id"]: n for n, c in enumerate(sorted(content["categories"], key=lambda c: c["id"]))
    }
    heights = {i["id"]: (i["height"], i["width"]) for i in content["images"]}
    sound = 0
    for (item,) in build_test_loader(cfg, NAME):
        own = truth.get(item["image_id"], [])
        found = Instances(heights[item["image_id"]])
        corners = [[x, y, x + w, y + h] for x, y, w, h in (entry["bbox"] for entry in own)]
        sound += sum(min(entry["bbox"][2:]) > 0 for entry in own)
        found.pred_boxes = Boxes(torch.tensor(corners).reshape(-1, 4))
        found.scores = torch.ones(len(own))
        found.pred_classes = torch.tensor([numbers[entry["category_id"]] for entry in own]).long()
        evaluator.process([item], [{"instances": found}])
    figures = evaluator.evaluate()
    usual = all(min(e["bbox"][2:]) > 0 for own in truth.values() for e in own)
    large = all(max(map(abs, e["bbox"])) < 1e4 for own in truth.values() for e in own)
    if sound and usual and large and "bbox" in figures:
        assert figures["bbox"]["AP"] > 99, figures
