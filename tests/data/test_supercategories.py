"""Super-categories from metadata and from COCO's files."""

import json

import pytest
from detectron2.data import MetadataCatalog

from divdr.data import supercategories


@pytest.fixture
def metadata(tmp_path):
    name = "grouped"
    yield MetadataCatalog.get(name)
    MetadataCatalog.remove(name)


def test_from_metadata(metadata):
    assert supercategories(metadata.name) is None
    metadata.thing_supercategories = ["food", "animal", "food"]
    assert supercategories(metadata.name) == [0, 1, 0]


def test_from_a_file_in_the_order_of_the_classes(metadata, tmp_path):
    categories = [
        {"id": 9, "name": "cup", "supercategory": "kitchen"},
        {"id": 2, "name": "dog", "supercategory": "animal"},
        {"id": 5, "name": "fork", "supercategory": "kitchen"},
    ]
    metadata.json_file = str(tmp_path / "instances.json")
    metadata.thing_dataset_id_to_contiguous_id = {2: 0, 5: 1, 9: 2}
    (tmp_path / "instances.json").write_text(json.dumps({"categories": categories}))
    assert supercategories(metadata.name) == [0, 1, 1]
    del categories[0]["supercategory"]
    (tmp_path / "instances.json").write_text(json.dumps({"categories": categories}))
    assert supercategories(metadata.name) is None
