"""What images are known by: the same wherever data lie, and never the same for two of them."""

import itertools
import os
import shutil

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from divdr import get_divdr_config
from divdr.data import (
    build_bank_loader,
    build_test_loader,
    build_train_loader,
    register_segmentation_folder,
    training_dicts,
)
from divdr.errors import DataError
from divdr.experts import KnownLabels
from divdr.image_keys import IMAGE_KEY, former_key, image_keys, name_images, recognise


@pytest.fixture
def registered(request):
    """Registers data sets for the time of a test, by short names that are made its own."""
    made = []

    def register(name, dicts, **metadata):
        whole = f"{request.node.name}_{name}"
        made.append(whole)
        DatasetCatalog.register(whole, lambda: [dict(d) for d in dicts])
        MetadataCatalog.get(whole).set(**metadata)
        return whole

    yield register
    for name in made:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


def keys_of(name, dicts):
    return [d[IMAGE_KEY] for d in name_images(name, dicts)]


def test_keys_do_not_depend_on_where_data_lie(registered, monkeypatch, tmp_path):
    found = set()
    monkeypatch.chdir(tmp_path)
    roots = ("/scratch/job1/city/", "/scratch/job2/city", "data/city", "../city")
    for number, root in enumerate(roots):
        files = [f"{root.rstrip('/')}/aachen/{i}.png" for i in range(2)]
        dicts = [{"file_name": file} for file in files]
        name = registered(f"city{number}", dicts, image_root=root)
        found.add(tuple(key.removeprefix(name) for key in keys_of(name, dicts)))
        absolute = [{"file_name": os.path.abspath(file)} for file in files]
        found.add(tuple(key.removeprefix(name) for key in keys_of(name, absolute)))
    assert found == {("/aachen/0.png", "/aachen/1.png")}


def test_without_a_root_paths_start_where_they_differ(registered):
    for root in ("/a", "/b/c"):
        dicts = [{"file_name": f"{root}/{p}"} for p in ("x/1.png", "y/1.png", "y/z/2.png")]
        assert keys_of("own", dicts) == ["own/x/1.png", "own/y/1.png", "own/y/z/2.png"]
    # A root that does not hold all of them is none.
    name = registered("part", [], image_root="/a/x")
    dicts = [{"file_name": "/a/x/1.png"}, {"file_name": "/a/y/1.png"}]
    assert keys_of(name, dicts) == [f"{name}/x/1.png", f"{name}/y/1.png"]


def test_images_of_one_file_and_images_without_one():
    tiles = [{"file_name": "/d/a.png", "image_id": i} for i in (7, 8)]
    assert keys_of("t", tiles) == ["t/#7/a.png", "t/#8/a.png"]
    frames = [{"file_name": "/d/a.png", "frame": i} for i in range(3)]
    assert keys_of("t", frames) == ["t/a.png", "t/#+1/a.png", "t/#+2/a.png"]
    assert keys_of("t", [{"image_id": 3}, {"image_id": "x/y"}]) == ["t/#3", "t/#x_y"]
    assert keys_of("a/b", [{"image_id": 3}]) == ["a_b/#3"]


@given(
    items=st.lists(
        st.fixed_dictionaries(
            {"file_name": st.sampled_from(["/r/a.png", "/r/b/a.png", "/r/b/c.png"])},
            optional={"image_id": st.sampled_from([0, "0", "0+1", "+1", "a/b"])},
        ),
        max_size=12,
    )
)
def test_no_two_images_share_a_key(items):
    keys = keys_of("set", items)
    assert len({*keys}) == len(items)
    assert image_keys(name_images("set", items)) == keys
    labels = KnownLabels({"a": 0, "c": 1})
    wanted = [int(item["file_name"].endswith("c.png")) for item in items]
    assert labels.of(keys, 2).tolist() == wanted


def test_labels_by_id_where_there_is_no_file():
    labels = KnownLabels({"7": 1, "set/#8": 0, "a.b": 1})
    keys = keys_of("set", [{"image_id": 7}, {"image_id": 8}, {"image_id": "a.b"}])
    assert labels.of(keys, 2).tolist() == [1, 0, 1]
    assert labels.of(["7"], 2).tolist() == [1]


def test_dicts_of_other_loaders(registered, monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    inside = {"file_name": str(tmp_path / "coco/train2017/1.jpg"), "image_id": 1}
    assert image_keys([inside]) == ["#1/coco/train2017/1.jpg"]
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "coco"))
    assert image_keys([inside]) == ["#1/train2017/1.jpg"]
    name = registered("b", [], image_root="/far/away")
    other = registered("a", [], image_root="/far/away")
    registered("outer", [], image_root="/far")
    assert image_keys([{"file_name": "/far/away/1.png"}]) == [f"{min(name, other)}/1.png"]
    assert image_keys([{"file_name": "elsewhere/1.png"}]) == ["elsewhere/1.png"]
    assert image_keys([{"image_id": 5}]) == ["#5"]
    with pytest.raises(DataError, match="'file_name' or 'image_id'"):
        image_keys([{"height": 3}])


def test_former_keys_are_recognised():
    tiles = [{"file_name": "/n/t.png", "image_id": i} for i in (1, 2)]
    ids = [{"image_id": 9}]
    files = [{"file_name": f"/n/{p}"} for p in ("x/1.png", "y/1.png", "y/2.png")]
    keys = [*keys_of("f", files), *keys_of("t", tiles), *keys_of("i", ids)]
    former = ["/old/f/x/1.png", "rel/y/1.png", "y/2.png", "/o/t.png", "9", "/old/z/1.png"]
    assert recognise(former, keys) == {
        "/old/f/x/1.png": "f/x/1.png",
        "rel/y/1.png": "f/y/1.png",
        "y/2.png": "f/y/2.png",
        "9": "i/#9",
    }
    assert [former_key(d) for d in (files[0], ids[0])] == ["/n/x/1.png", "9"]


@pytest.fixture
def cfg(tmp_path, registered):
    """Two data sets of folders with files of the same names, one of which holds all labels."""
    made = []
    for part in ("one", "two"):
        for kind in ("images", "labels"):
            (tmp_path / part / kind).mkdir(parents=True)
            for index in range(3):
                Image.fromarray(np.zeros((32, 32), np.uint8)).convert(
                    "RGB" if kind == "images" else "L"
                ).save(tmp_path / part / kind / f"{index}.png")
        name = f"keys_{part}"
        made.append(name)
        folders = [str(tmp_path / part / kind) for kind in ("images", "labels")]
        register_segmentation_folder(name, *folders, ["a", "b"])
    cfg = get_divdr_config()
    cfg.DATASETS.TRAIN = tuple(made)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.INPUT.DATASET_MAPPER_NAME = "semantic_crop"
    cfg.INPUT.CROP.SIZE = [32, 32]
    cfg.SOLVER.IMS_PER_BATCH = 2
    yield cfg
    for name in made:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


ALL = [f"keys_{part}/{i}.png" for part in ("one", "two") for i in range(3)]


def test_every_loader_names_its_images(cfg):
    assert [d[IMAGE_KEY] for d in training_dicts(cfg)] == ALL
    own = dict(DatasetCatalog)
    train = build_train_loader(cfg)
    assert train.dataset.keys == ALL
    batches = itertools.islice(train, 3)
    assert {key for batch in batches for key in image_keys(batch)} == {*ALL}
    for loader in (build_test_loader(cfg, cfg.DATASETS.TRAIN), build_bank_loader(cfg)):
        assert [key for batch in loader for key in image_keys(batch)] == ALL
    # A mapper that makes dicts of its own loses no key.
    bare = build_train_loader(cfg, mapper=lambda d: {"image": d["file_name"]})
    assert {*image_keys(next(iter(bare)))} <= {*ALL}
    # The catalogue is as it was, and a data set's own dicts are.
    assert dict(DatasetCatalog) == own
    assert IMAGE_KEY not in DatasetCatalog.get("keys_one")[0]


def test_the_subset_is_drawn_by_the_seed(cfg):
    def drawn(images, seed):
        return [key for batch in build_bank_loader(cfg, images, seed) for key in image_keys(batch)]

    assert drawn(4, 3) == drawn(4, 3)
    assert len({*drawn(4, 3)}) == 4
    assert {*drawn(4, 3)} < {*ALL}
    assert len({tuple(drawn(4, seed)) for seed in range(8)}) > 1
    assert drawn(6, 0) == drawn(60, 0) == ALL


def test_a_moved_data_set_has_the_same_keys(cfg, tmp_path):
    before = [d[IMAGE_KEY] for d in training_dicts(cfg)]
    for part in ("one", "two"):
        shutil.move(tmp_path / part, tmp_path / "moved" / part)
        name = f"keys_{part}"
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)
        folders = [str(tmp_path / "moved" / part / kind) for kind in ("images", "labels")]
        register_segmentation_folder(name, *folders, ["a", "b"])
    assert [d[IMAGE_KEY] for d in training_dicts(cfg)] == before
