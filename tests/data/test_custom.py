"""Data sets that ``DATASETS.CUSTOM`` describes: entries, registration, splits."""

import json
import pickle

import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from divdr.data import check_data, register_custom, register_segmentation_folder
from divdr.data.shares import training_share
from divdr.engine import load_config
from divdr.engine.own_data import fitted_if_asked
from divdr.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _names(tmp_path, names_under):
    with names_under(tmp_path):
        yield


def draw_scenes(folder, count=12):
    """Images of class 0 alone, but that of number 3, which shows class 1 too."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        labels = np.zeros((4, 6), np.uint8)
        labels[0, 0] = number == 3
        Image.fromarray(labels).save(folder / f"labels/{number}.png")
        Image.new("RGB", (6, 4)).save(folder / f"images/{number}.png")


def entry(**more):
    return {
        "name": "mine",
        "kind": "folder",
        "images": "images",
        "labels": "labels",
        "classes": ["road", "rest"],
        **more,
    }


def files(name):
    return {d["file_name"].rpartition("/")[2] for d in DatasetCatalog.get(name)}


def test_a_yaml_file_names_data_for_any_config(tmp_path, monkeypatch):
    draw_scenes(tmp_path / "data")
    (tmp_path / "data/data.yaml").write_text(yaml.safe_dump(entry(split=0.75)))
    monkeypatch.chdir(tmp_path)
    cfg = load_config("", ["DATASETS.CUSTOM", "data/data.yaml"])
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("mine_train",), ("mine_val",))
    train, val = files("mine_train"), files("mine_val")
    assert train | val == {f"{n}.png" for n in range(12)}
    assert not train & val
    metadata = MetadataCatalog.get("mine_val")
    assert metadata.stuff_classes == ["road", "rest"]
    assert metadata.ignore_label == 255
    # The config of a run means the same data from any folder, and in another process.
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(cfg.dump())
    DatasetCatalog.clear()
    MetadataCatalog.clear()
    monkeypatch.chdir(tmp_path / "run")
    again = load_config("config.yaml")
    assert again.DATASETS == cfg.DATASETS
    assert files("mine_train") == train
    # A process that is spawned for a run gets the configuration, and no data sets.
    spawned = pickle.loads(pickle.dumps(again))
    DatasetCatalog.clear()
    MetadataCatalog.clear()
    assert fitted_if_asked(spawned) is spawned
    assert files("mine_val") == val


def test_a_config_file_names_data_from_its_own_folder(tmp_path, monkeypatch):
    draw_scenes(tmp_path / "data")
    base = tmp_path / "data/base.yaml"
    base.write_text(yaml.safe_dump({"DATASETS": {"CUSTOM": [entry()], "TRAIN": ["mine"]}}))
    top = tmp_path / "top.yaml"
    top.write_text('_BASE_: "data/base.yaml"\nSEED: 3\n')
    cfg = load_config(str(top))
    assert cfg.DATASETS.CUSTOM[0]["images"] == str(tmp_path / "data/images")
    assert len(files("mine")) == 12
    cfg = load_config("", ["DATASETS.CUSTOM", str([entry(name="here")])])
    assert cfg.DATASETS.TRAIN == ("here",)
    assert cfg.DATASETS.TEST == ()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    root = "$DETECTRON2_DATASETS"
    there = entry(name="there", images=f"{root}/images", labels=f"{root}/labels")
    cfg = load_config("", ["DATASETS.CUSTOM", str(there)])
    assert cfg.DATASETS.CUSTOM[0]["images"] == "$DETECTRON2_DATASETS/images"
    assert len(files("there")) == 12


def test_a_name_stands_for_one_data_set(tmp_path):
    draw_scenes(tmp_path)
    one = entry(images=str(tmp_path / "images"), labels=str(tmp_path / "labels"))
    assert register_custom([one]) == ["mine"]
    load = DatasetCatalog["mine"]
    assert register_custom([one]) == ["mine"]
    assert DatasetCatalog["mine"] is load
    with pytest.raises(ConfigError, match="a data set 'mine' of other content is registered"):
        register_custom([{**one, "classes": ["a", "b"]}])
    register_segmentation_folder("yours", one["images"], one["labels"], ["a", "b"])
    with pytest.raises(ConfigError, match="a data set 'yours' of other content"):
        register_custom([{**one, "name": "yours"}])


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({"name": "a b"}, "has the name 'a b'"),
        ({"kind": "foldr"}, "data set 'mine' is of kind 'foldr'; kinds are folder, coco, voc"),
        ({"lables": "x"}, "has the key 'lables', which kind folder does not know; did you mean"),
        ({"labels": None}, "'labels' must be a path"),
        ({"classes": [True, "b"]}, "'classes' must be a list of names, in quotes"),
        ({"classes": ["a", "a"]}, "a name of its own for each class"),
        ({"split": 80}, "'split' must be the share to train on, above 0 and below 1, not 80"),
        ({"seed": 1}, "'seed' is of a 'split'"),
        ({"ignore": "255"}, "'ignore' must be a whole number"),
        ({"colors": [[0, 0, 0]]}, "'colors' must be one"),
        ({"kind": "class_folders", "path": "x"}, "has the key 'images', which kind class_folders"),
        ({"kind": "yolo", "yaml": "x"}, "either 'yaml', the data.yaml, or 'images' and 'classes'"),
    ],
)
def test_entries_are_checked_when_they_are_read(tmp_path, changed, wanted):
    path = tmp_path / "data.yaml"
    path.write_text(yaml.safe_dump([{**entry(), **changed}]))
    with pytest.raises(ConfigError, match=wanted) as caught:
        load_config("", ["DATASETS.CUSTOM", str(path)])
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_files_of_entries_are_checked(tmp_path):
    path = tmp_path / "data.yaml"
    with pytest.raises(ConfigError, match=r"data\.yaml cannot be read: No such file"):
        load_config("", ["DATASETS.CUSTOM", str(path)])
    path.write_text("name: mine\nkind: [folder\n")
    with pytest.raises(ConfigError, match=r"data\.yaml, line 3 cannot be read as yaml"):
        load_config("", ["DATASETS.CUSTOM", str(path)])
    path.write_text("- mine\n")
    with pytest.raises(ConfigError, match=r"data\.yaml holds no entry with name and kind"):
        load_config("", ["DATASETS.CUSTOM", str(path)])
    with pytest.raises(ConfigError, match=r"holds entries .* and files of them, not 3"):
        load_config("", ["DATASETS.CUSTOM", "3"])
    lacking = {key: value for key, value in entry().items() if key != "labels"}
    with pytest.raises(ConfigError, match="lacks 'labels', which kind folder needs"):
        load_config("", ["DATASETS.CUSTOM", str(lacking)])


def test_predicting_needs_no_data(tmp_path):
    """Of folders that are not there, entries are still registered; whoever reads them is told."""
    kinds = [
        entry(images="/none/i", labels="/none/l", split=0.5),
        {"name": "c", "kind": "coco", "images": "/none", "json": "/none/a.json"},
        {"name": "v", "kind": "voc", "path": "/none"},
        {"name": "m", "kind": "voc_masks", "path": "/none", "classes": ["a"]},
        {"name": "y", "kind": "yolo", "yaml": "/none/data.yaml"},
        {"name": "f", "kind": "class_folders", "path": "/none"},
    ]
    names = register_custom(kinds)
    assert names == [
        *("mine_train", "mine_val", "c", "v_train", "v_val"),
        *("m_train", "m_val", "y_train", "y_val", "f"),
    ]
    for name in names:
        cfg = load_config()
        cfg.DATASETS.TRAIN = (name,)
        with pytest.raises(DataError, match="/none"):
            check_data(cfg)


def test_every_check_sees_them(tmp_path):
    """Those before the first iteration, for the validation's share too."""
    draw_scenes(tmp_path, 40)
    one = entry(images=str(tmp_path / "images"), labels=str(tmp_path / "labels"), split=0.5)
    pairs = ["DATASETS.CUSTOM", str(one), "MODEL.META_ARCHITECTURE", "SemanticSegmentor"]
    cfg = load_config("", [*pairs, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "2"])
    check_data(cfg)
    held_back = sorted(files("mine_val"))[0]
    Image.fromarray(np.full((4, 6), 9, np.uint8)).save(tmp_path / "labels" / held_back)
    with pytest.raises(DataError, match=f"{held_back} holds 9; classes are 0 to 1"):
        check_data(cfg)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 5
    with pytest.raises(DataError, match="NUM_CLASSES is 5, but data set 'mine_train' has 2"):
        check_data(cfg)


def test_two_sets_must_have_the_same_classes(tmp_path):
    for part in ("a", "b"):
        draw_scenes(tmp_path / part)
    both = [
        entry(name=part, images=f"{tmp_path}/{part}/images", labels=f"{tmp_path}/{part}/labels")
        for part in ("a", "b")
    ]
    architecture = ["MODEL.META_ARCHITECTURE", "SemanticSegmentor"]
    pairs = [*architecture, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "2"]
    cfg = load_config("", ["DATASETS.CUSTOM", str(both), *pairs])
    assert cfg.DATASETS.TRAIN == ("a", "b")
    check_data(cfg)
    both[1].update(name="c", classes=["road", "sky"])
    cfg = load_config("", ["DATASETS.CUSTOM", str(both), *pairs])
    with pytest.raises(DataError, match="'a' and 'c' have other classes: only 'c' has 'sky'"):
        check_data(cfg)


def write_coco(folder, count=10):
    (folder / "photos").mkdir()
    images, annotations = [], []
    for number in range(count):
        name = f"p{number}_{number % 2}.png"
        Image.new("RGB", (20, 10)).save(folder / "photos" / name)
        images.append({"id": number, "file_name": name, "height": 10, "width": 20})
        box = {"bbox": [2, 3, 4, 5], "area": 20, "iscrowd": 0, "category_id": 7}
        annotations.append({"id": number + 1, "image_id": number, **box})
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}]
    (folder / "boxes.json").write_text(json.dumps(content))


def test_coco_and_its_split(tmp_path):
    write_coco(tmp_path)
    one = {"name": "boxes", "kind": "coco", "images": "photos", "json": "boxes.json", "split": 0.6}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump([one]))
    pairs = ["DATASETS.CUSTOM", str(tmp_path / "data.yaml")]
    cfg = load_config("", [*pairs, "MODEL.META_ARCHITECTURE", "GeneralizedRCNN"])
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    check_data(cfg)
    train, val = files("boxes_train"), files("boxes_val")
    assert len(train | val) == 10
    assert not train & val
    assert MetadataCatalog.get("boxes_val").thing_classes == ["cat", "dog"]
    content = json.loads((tmp_path / "boxes.json").read_text())
    content["annotations"][4]["category_id"] = 8
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"boxes\.json.*p4_0\.png has category 8, which the file's"):
        check_data(cfg)
    other = {**one, "name": "other", "classes": ["cat", "owl"], "images": str(tmp_path / "photos")}
    content["annotations"][4]["category_id"] = 7
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    register_custom([{**other, "json": str(tmp_path / "boxes.json")}])
    with pytest.raises(DataError, match=r"are 'cat', 'dog', by their ids, and its 'classes'"):
        DatasetCatalog.get("other_val")


def test_a_yolo_file_is_an_entry_by_itself(tmp_path):
    folder = tmp_path / "birds 2"
    for part, stems in (("train", "abcdefgh"), ("val", "i")):
        for kind in ("images", "labels"):
            (folder / part / kind).mkdir(parents=True)
        for stem in stems:
            Image.new("RGB", (20, 10)).save(folder / part / f"images/{stem}.jpg")
            (folder / part / f"labels/{stem}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    content = {"train": "../train/images", "val": "../val/images", "nc": 1, "names": ["bird"]}
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    cfg = load_config("", ["DATASETS.CUSTOM", str(folder / "data.yaml")])
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("birds_2_train",), ("birds_2_val",))
    assert files("birds_2_val") == {"i.jpg"}
    assert MetadataCatalog.get("birds_2_train").thing_classes == ["bird"]
    divided = {"name": "mine", "kind": "yolo", "yaml": str(folder / "data.yaml"), "split": 0.5}
    register_custom([divided])
    sides = files("mine_train"), files("mine_val")
    assert all(sides)
    assert sides[0] | sides[1] == {f"{stem}.jpg" for stem in "abcdefgh"}, "those of 'train' alone"


def test_class_folders_are_divided_class_by_class(tmp_path):
    for name, count in (("cat", 10), ("dog", 5), ("owl", 2)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.new("RGB", (4, 4)).save(tmp_path / name / f"{number}.png")
    one = {"name": "pets", "kind": "class_folders", "path": str(tmp_path), "split": 0.8}
    register_custom([one])
    train, val = DatasetCatalog.get("pets_train"), DatasetCatalog.get("pets_val")
    counts = [[sum(d["label"] == c for d in side) for c in range(3)] for side in (train, val)]
    # 80 % of 10, 5 and 2 are 8, 4 and 1.6, of which one must stay back.
    assert counts == [[8, 4, 1], [2, 1, 1]]
    assert MetadataCatalog.get("pets_val").classes == ["cat", "dog", "owl"]
    before = {d["file_name"] for d in train}
    Image.new("RGB", (4, 4)).save(tmp_path / "owl/7.png")
    after = {d["file_name"] for d in DatasetCatalog.get("pets_train")}
    owls = {file for file in before ^ after if "/owl/" not in file}
    assert not owls, "other classes stay as they were"


@given(
    st.sets(st.text("abc/", min_size=1, max_size=6), min_size=2),
    st.floats(0.05, 0.95),
    st.integers(0, 5),
)
def test_sides_follow_from_the_name_alone(names, share, seed):
    names = sorted(names)
    chosen = training_share(names, share, seed=seed)
    assert any(chosen)
    assert not all(chosen)
    backwards = training_share(names[::-1], share, seed=seed)
    assert backwards[::-1] == chosen
    # Others that come leave it where it is, unless one side would have been empty.
    more = [*names, *(f"more/{number}" for number in range(40))]
    moved = [a != b for a, b in zip(chosen, training_share(more, share, seed=seed), strict=False)]
    assert sum(moved) <= 1


def test_shares_seeds_and_groups():
    names = [f"scene{n // 10}_{n}" for n in range(2000)]
    chosen = training_share(names, 0.8)
    # A binomial's standard deviation is 18.
    assert sum(chosen) == pytest.approx(1600, abs=72)
    assert training_share(names, 0.8, seed=1) != chosen
    grouped = training_share(names, 0.8, group="_")
    for first in range(0, 2000, 10):
        assert len({*grouped[first : first + 10]}) == 1
    assert sum(grouped) == pytest.approx(1600, abs=4 * 57)
    # A patient's images are on one side, in whatever folder.
    both = training_share(["cat/p1_a", "dog/p1_b", "cat/p2_a"], 0.5, group="_", strata=[0, 1, 0])
    assert both[0] == both[1] != both[2]


def test_a_file_that_is_missing_is_told_with_the_key_and_the_config_that_name_it(tmp_path):
    config = tmp_path / "own.yaml"
    config.write_text("DATASETS: {CUSTOM: missing.yaml}\n")
    with pytest.raises(ConfigError) as error:
        load_config(str(config))
    wanted = f"{config}: DATASETS.CUSTOM: {tmp_path}/missing.yaml cannot be read: "
    assert str(error.value).startswith(wanted)
