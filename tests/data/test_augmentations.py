"""INPUT.EXTRA_AUGMENTATIONS, through the mapper that applies them."""

import numpy as np
import pytest
from detectron2.structures import BoxMode
from PIL import Image

from divdr import get_divdr_config
from divdr.data import build_mapper
from divdr.errors import ConfigError

BOX = [10, 20, 40, 30]


@pytest.fixture
def record(tmp_path):
    pixels = np.full((60, 60, 3), 100, np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 220
    Image.fromarray(pixels).save(tmp_path / "image.png")
    annotation = {"bbox": BOX, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    return {
        "file_name": str(tmp_path / "image.png"),
        "height": 60,
        "width": 60,
        "annotations": [annotation],
    }


def mapped(record, names, count=24):
    cfg = get_divdr_config()
    cfg.INPUT.MIN_SIZE_TRAIN = (60,)
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.EXTRA_AUGMENTATIONS = names
    np.random.seed(0)  # noqa: NPY002  Detectron2 draws from this one
    mapper = build_mapper(cfg)
    return [mapper(record) for _ in range(count)]


@pytest.mark.parametrize(("name", "places"), [("vertical_flip", 2), ("quarter_turns", 4)])
def test_boxes_go_where_their_objects_go(record, name, places):
    seen = set()
    for item in mapped(record, [name]):
        (box,) = item["instances"].gt_boxes.tensor.round().int().tolist()
        seen.add(tuple(box))
        rows, columns = np.nonzero(item["image"][0].numpy() > 180)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(np.array(found) - box).max() <= 1
    assert len(seen) == places


def test_colour_moves_values_and_nothing_else(record):
    items = mapped(record, ["colour"])
    backgrounds = {int(item["image"][0, 0, 0]) for item in items}
    assert len(backgrounds) > 10
    assert all(40 < value < 180 for value in backgrounds)
    for item in items:
        assert item["instances"].gt_boxes.tensor.tolist() == [BOX]


def test_unknown_names_are_refused(record):
    with pytest.raises(ConfigError, match=r"'mirror'.*vertical_flip"):
        mapped(record, ["mirror"])
