"""What is known to be wrong with data sets before the first iteration, and what is only said."""

import json
import logging

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image
from pycocotools import mask as mask_util

from divdr import get_divdr_config
from divdr.data import (
    check_data,
    read_once,
    register_class_folders,
    register_segmentation_folder,
    training_dicts,
)
from divdr.errors import DataError

NAMES = ("pre_train", "pre_val")


@pytest.fixture(autouse=True)
def no_trace():
    yield
    for name in NAMES:
        for catalog in (DatasetCatalog, MetadataCatalog):
            if name in catalog.list():
                catalog.remove(name)


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def problems(cfg, **more):
    with pytest.raises(DataError) as caught:
        check_data(cfg, **more)
    return list(caught.value.problems)


def config(architecture, classes, **settings):
    cfg = get_divdr_config()
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = classes
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = classes
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = NAMES[:1], NAMES[1:]
    for key, value in settings.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


class Scenes:
    """Two data sets of images and labels 0 and 1, both of which every label has."""

    def __init__(self, folder):
        self.folder = folder
        for part in ("train", "val"):
            for kind in ("images", "labels"):
                (folder / part / kind).mkdir(parents=True)
            for index in range(3):
                self.save(part, index, np.arange(24).reshape(4, 6) % 2)

    def save(self, part, index, labels, size=None):
        labels = np.asarray(labels)
        Image.new("RGB", (size or labels.shape)[::-1]).save(
            self.folder / part / "images" / f"{index}.png"
        )
        Image.fromarray(labels.astype(np.uint8)).save(self.label(part, index))

    def label(self, part, index):
        return self.folder / part / "labels" / f"{index}.png"

    def check(self, classes=("a", "b"), val=None, train=None, **settings):
        for name, part, own in zip(NAMES, ("train", "val"), (train, val), strict=True):
            folders = [str(self.folder / part / kind) for kind in ("images", "labels")]
            options = {"classes": classes, **(own or {})}
            register_segmentation_folder(name, *folders, **options)
        check_data(config("SemanticSegmentor", 2, **settings))

    def complaints(self, *args, **more):
        with pytest.raises(DataError) as caught:
            self.check(*args, **more)
        return list(caught.value.problems)


@pytest.fixture
def scenes(tmp_path):
    return Scenes(tmp_path)


def test_sound_scenes_pass_without_a_word(scenes, caplog):
    scenes.check()
    assert not warnings(caplog)


def test_everything_is_reported_at_once_for_training_and_evaluation_alike(scenes):
    scenes.save("train", 0, np.full((4, 6), 7))
    scenes.save("val", 1, np.zeros((4, 5)), size=(4, 6))
    scenes.label("val", 2).write_bytes(b"no label")
    reported = scenes.complaints()
    assert reported == [
        f"label file {scenes.label('train', 0)} holds 7; classes are 0 to 1, and 255 is ignored",
        f"label file {scenes.label('val', 1)} is 4×5 pixels, its image 4×6",
        *[t for t in reported if "cannot be read as an image" in t],
    ]
    assert len(reported) == 3
    text = str(DataError(*reported))
    assert text.startswith(f"{reported[0]}; and 2 more:\n  - {reported[1]}\n")
    scenes.save("train", 0, np.zeros((4, 6)))
    assert len(scenes.complaints()) == 2, "those of the evaluation alone"


def test_colours_in_labels_are_reported_once_and_by_the_head_of_the_file(scenes, monkeypatch):
    Image.new("RGB", (6, 4)).save(scenes.label("val", 1))
    reported = [
        f"file {scenes.label('val', 1)} cannot be used: it is in colours (mode RGB), and must have "
        "one channel, the numbers of the classes"
    ]
    assert scenes.complaints() == reported
    monkeypatch.setattr("divdr.data.preflight._VALUES", 1)  # of this label no pixel is read
    assert scenes.complaints() == reported


def test_classes_must_be_the_models_and_the_same_in_all(scenes):
    assert scenes.complaints(val={"classes": ("b", "a")}) == [
        "data sets 'pre_train' and 'pre_val' have other classes: number 0 is 'a' in the first, 'b' "
        "in the second"
    ]
    assert scenes.complaints(val={"classes": ("a", "c")}) == [
        "data sets 'pre_train' and 'pre_val' have other classes: only 'pre_val' has 'c', only "
        "'pre_train' has 'b'"
    ]
    assert scenes.complaints(("a", "b", "c")) == [
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES is 2, but data set 'pre_train' has 3 classes ('a', 'b', "
        "'c'); set it to 3"
    ]
    assert scenes.complaints(val={"ignore_label": 254}) == [
        "MODEL.SEM_SEG_HEAD.IGNORE_VALUE is 255, but data set 'pre_val' marks pixels without a "
        "class by 254"
    ]


def test_classes_without_a_pixel_are_reported(scenes, caplog):
    for index in range(3):
        scenes.save("val", index, np.full((4, 6), 255) * (index > 0))
    scenes.check()
    assert warnings(caplog) == ["data set 'pre_val': no pixel is of class 'b'"]
    caplog.clear()
    scenes.save("val", 0, np.full((4, 6), 255))
    scenes.check()
    assert warnings(caplog) == ["data set 'pre_val': no pixel of any label has a class"]


def test_a_kind_of_evaluation_that_the_model_cannot_have(scenes, tmp_path):
    scenes.check()
    boxes(tmp_path, "val", "cat")
    reported = problems(config("SemanticSegmentor", 2))
    assert reported == [
        "data set 'pre_val' is evaluated by instances, which SemanticSegmentor does not predict"
    ]


def test_data_sets_that_are_not_there(scenes, tmp_path):
    scenes.check()
    DatasetCatalog.remove(NAMES[1])
    assert "is not registered" in problems(config("SemanticSegmentor", 2))[0]
    (tmp_path / "train" / "labels").rename(tmp_path / "elsewhere")
    reported = problems(config("SemanticSegmentor", 2))
    assert len(reported) == 2
    assert "'pre_train' expects its labels in" in reported[0]
    reported = problems(config("SemanticSegmentor", 2), training=False)
    assert len(reported) == 1, "of the training set nothing is used"


def boxes(folder, part, *categories, change=None):
    """A COCO file of one image with a box of each category, registered."""
    where = folder / f"boxes_{part}"
    where.mkdir(exist_ok=True)
    Image.new("RGB", (48, 32)).save(where / "1.png")
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": 48, "height": 32}],
        "categories": [{"id": n, "name": name} for n, name in enumerate(categories, 1)],
        "annotations": [
            {
                "id": n,
                "image_id": 1,
                "category_id": n,
                "bbox": [2, 2, 9, 9],
                "area": 81,
                "iscrowd": 0,
                "segmentation": [[2, 2, 11, 2, 11, 11, 2, 11]],
            }
            for n in range(1, len(categories) + 1)
        ],
    }
    if change is not None:
        change(content)
    (folder / f"{part}.json").write_text(json.dumps(content))
    name = f"pre_{part}"
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog.list():
            catalog.remove(name)
    register_coco_instances(name, {}, str(folder / f"{part}.json"), str(where))
    return content


def test_sound_boxes_pass_and_other_categories_do_not(tmp_path, caplog):
    boxes(tmp_path, "train", "cat", "dog")
    boxes(tmp_path, "val", "cat", "dog")
    cfg = config("GeneralizedRCNN", 2)
    check_data(cfg)
    assert not warnings(caplog)
    boxes(tmp_path, "val", "dog", "cat")
    assert "number 0 is 'cat' in the first, 'dog' in the second" in problems(cfg)[0]
    boxes(tmp_path, "val", "dog")
    assert problems(cfg) == [
        "data sets 'pre_train' and 'pre_val' have other categories of things: only 'pre_train' has "
        "'cat'"
    ]


def changed(part, key, value, index=0):
    def change(content):
        content[part][index][key] = value

    return change


def twice(part):
    def change(content):
        content[part].append({**content[part][0], "file_name": "1.png", "name": "other"})

    return change


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        (changed("images", "id", "1"), "has image_id 1, where the ids of images are texts"),
        (changed("images", "id", None), "has id None, which is neither a whole number nor a text"),
        (changed("annotations", "image_id", [1]), "has image_id [1], which is neither a whole"),
        (changed("images", "id", 7), "no annotation's image_id is the id of an image"),
        (changed("images", "height", "32"), "has height '32', which must be a number of pixels"),
        (changed("images", "width", 0), "has width 0, which must be a number of pixels"),
        (changed("images", "file_name", None), "has file_name None, which must be a text"),
        (twice("images"), "entry 1 of 'images' (1.png) has id 1, which another one has too"),
        (twice("categories"), "(other) has id 1, which another one has too"),
        (changed("categories", "name", 3), "entry 0 of 'categories' has name 3"),
        (changed("annotations", "category_id", 5), "has category 5, which the file's 'categ"),
        (changed("annotations", "category_id", "1"), "has category 1, which the file's 'categ"),
        (changed("annotations", "bbox", [1, "2", 3, 4]), "has bbox [1, '2', 3, 4], which must be"),
        (changed("annotations", "bbox", [1, 2, 3, None]), "has bbox [1, 2, 3, None], which must"),
        (changed("annotations", "area", None), "has area None, which must be a number of pixels"),
        (changed("annotations", "area", "81"), "has area '81', which must be a number of pixels"),
        (changed("annotations", "area", -1), "has area -1, which must be a number of pixels"),
        (changed("annotations", "iscrowd", None), "has iscrowd None, which must be 0 or 1"),
        (changed("annotations", "iscrowd", 2), "has iscrowd 2, which must be 0 or 1"),
        (
            changed("annotations", "segmentation", [[2, 2, 11, 2, 11, 11], [1, 1, 2, 2]]),
            "has a polygon [1, 1, 2, 2], which is no mask",
        ),
        (
            changed("annotations", "segmentation", {"size": [32, 48], "counts": [5, 9]}),
            "has an RLE mask whose counts sum up to 14, not to its 32×48",
        ),
        (
            changed("annotations", "segmentation", {"size": [9, 9], "counts": [81]}),
            "has an RLE mask of size [9, 9] in an image of [32, 48]",
        ),
        (
            changed("annotations", "segmentation", {"size": [32, 48], "counts": "zz"}),
            "has an RLE mask whose counts 'zz' are not for its 32×48 pixels",
        ),
    ],
)
def test_contents_of_files_for_evaluation(tmp_path, change, reported):
    boxes(tmp_path, "val", "cat", "dog", change=change)
    cfg = config("GeneralizedRCNN", 2, MODEL__MASK_ON=True, DATASETS__TRAIN=())
    found = problems(cfg, training=False)
    assert found[0].startswith(f"data set 'pre_val' ({tmp_path}/val.json)")
    assert reported in found[0]


def test_compressed_masks(tmp_path):
    # Runs of both signs of difference, as pycocotools writes them.
    pixels = np.random.default_rng(0).random((32, 48)) > np.linspace(0, 1, 48)
    mask = mask_util.encode(np.asfortranarray(pixels.astype(np.uint8)))
    text = mask["counts"].decode()
    cfg = config("GeneralizedRCNN", 1, MODEL__MASK_ON=True, DATASETS__TRAIN=())
    for counts, fine in ((text, True), (text[:-3], False), (text + "1", False), ("\n", False)):
        rle = {"size": [32, 48], "counts": counts}
        boxes(tmp_path, "val", "cat", change=changed("annotations", "segmentation", rle))
        if fine:
            check_data(cfg, training=False)
        else:
            assert "are not for its 32×48 pixels" in problems(cfg, training=False)[0]


def test_what_may_be_meant_so_is_reported(tmp_path, caplog):
    def change(content):
        content["annotations"] += [
            {**content["annotations"][0], "id": 90 + n, "image_id": 9} for n in range(2)
        ]
        content["annotations"][1]["category_id"] = 1

    boxes(tmp_path, "val", "cat", "dog", change=change)
    check_data(config("GeneralizedRCNN", 2, DATASETS__TRAIN=()), training=False)
    text = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith("divdr"))
    assert text.count("2 of 4 annotations are of no image of the file, and left out") == 1
    assert "no box is of class 'dog'" in text


def test_annotation_ids_of_any_kind_are_fine(tmp_path):
    boxes(tmp_path, "val", "cat", "dog", change=changed("annotations", "id", "one"))
    check_data(config("GeneralizedRCNN", 2, DATASETS__TRAIN=()), training=False)


def test_key_points_and_their_sigmas(tmp_path):
    boxes(tmp_path, "val", "cat", change=lambda c: c["annotations"].clear())
    names = {"keypoint_names": ["l", "r"], "keypoint_flip_map": [("l", "r")]}
    MetadataCatalog.get("pre_val").set(**names)
    cfg = config("GeneralizedRCNN", 1, DATASETS__TRAIN=(), MODEL__KEYPOINT_ON=True)
    reported = "\n".join(problems(cfg, training=False))
    assert "NUM_KEYPOINTS is 17, but data set 'pre_val' has 2 key points ('l', 'r')" in reported
    cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 2
    assert problems(cfg, training=False) == [
        "TEST.KEYPOINT_OKS_SIGMAS has 17 numbers, but the model predicts 2 key points"
    ]
    cfg.TEST.KEYPOINT_OKS_SIGMAS = [0.1, 0.1]
    check_data(cfg, training=False)


def class_folders(folder, part, *classes, files=("0.png",)):
    for name in classes:
        (folder / part / name).mkdir(parents=True)
        for file in files:
            Image.new("RGB", (8, 8)).save(folder / part / name / file)


def classifier(classes):
    cfg = config("ImageClassifier", 2)
    cfg.INPUT.DATASET_MAPPER_NAME = "classification"
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = classes
    return cfg


def test_folders_of_classes(tmp_path, caplog):
    class_folders(tmp_path, "train", "ant", "bee", files=("0.PNG", "1.Jpg"))
    class_folders(tmp_path, "train", ".ipynb_checkpoints", "__MACOSX")
    class_folders(tmp_path, "val", "ant", "cow")
    for name in NAMES:
        register_class_folders(name, str(tmp_path / name.removeprefix("pre_")))
    assert [d["label"] for d in DatasetCatalog.get(NAMES[0])] == [0, 0, 1, 1]
    cfg = classifier(2)
    assert problems(cfg) == [
        "data sets 'pre_train' and 'pre_val' have other classes: only 'pre_val' has 'cow', only "
        "'pre_train' has 'bee'"
    ]
    (tmp_path / "val" / "cow").rename(tmp_path / "val" / "bee")
    (tmp_path / "val" / "bee" / "0.png").unlink()
    register_class_folders(NAMES[1], str(tmp_path / "val"))
    check_data(cfg)
    assert "data set 'pre_val': no image is of class 'bee'" in warnings(caplog)
    assert any("NUM_CLASSES is 3" in reported for reported in problems(classifier(3)))


def test_a_folder_of_images_is_found_by_looking(tmp_path, caplog):
    images, labels = tmp_path / "i", tmp_path / "l"
    for folder in (images / "town", labels / "town", images / ".cache"):
        folder.mkdir(parents=True)
    for name in ("a.JPG", "town/a.png", "c.jpeg", ".cache/x.png"):
        Image.new("RGB", (4, 4)).save(images / name)
    for name in ("a.png", "town/a.PNG", "c.tif", "unused.png"):
        Image.new("L", (4, 4)).save(labels / name)
    for _ in range(2):  # as the cell of a notebook that runs again
        register_segmentation_folder(NAMES[0], str(images), str(labels), ["a", "b"])
    found = DatasetCatalog.get(NAMES[0])
    assert [d["file_name"].removeprefix(f"{images}/") for d in found] == [
        "a.JPG",
        "c.jpeg",
        "town/a.png",
    ]
    assert [d["sem_seg_file_name"].removeprefix(f"{labels}/") for d in found] == [
        "a.png",
        "c.tif",
        "town/a.PNG",
    ]
    assert "1 labels have no image" in caplog.text
    Image.new("RGB", (4, 4)).save(images / "a.png")
    with pytest.raises(DataError, match=r"holds a\.JPG and a\.png, and nobody can tell"):
        register_segmentation_folder(NAMES[0], str(images), str(labels), ["a", "b"])
    register_segmentation_folder(NAMES[0], str(images), str(labels), ["a"], image_ext="jpg")
    with pytest.raises(DataError, match="name of its own for each class"):
        register_segmentation_folder(NAMES[0], str(images), str(labels), ["a", "a"])
    with pytest.raises(DataError, match="has 1 classes and 2 colours"):
        register_segmentation_folder(
            NAMES[0], str(images), str(labels), ["a"], colors=[(0, 0, 0), (9, 9, 9)]
        )


def test_data_sets_are_read_once(tmp_path):
    boxes(tmp_path, "train", "cat", "dog")
    cfg = config("GeneralizedRCNN", 2, DATASETS__TEST=())
    inner, count = DatasetCatalog[NAMES[0]], []
    DatasetCatalog[NAMES[0]] = lambda: count.append(1) or inner()
    with read_once(NAMES):
        check_data(cfg)
        first = training_dicts(cfg)
    assert len(count) == 1
    assert training_dicts(cfg) == first
    assert len(count) == 2


class Asked(dict):
    """An annotation that counts how often somebody looks at its box."""

    times = 0

    def get(self, key, default=None):
        Asked.times += key == "bbox"
        return super().get(key, default)


def test_annotations_are_checked_once_for_a_model(tmp_path, monkeypatch):
    for part in ("train", "val"):
        boxes(tmp_path, part, "cat", "dog")
    for name in NAMES:
        load = DatasetCatalog[name]
        DatasetCatalog[name] = lambda load=load: [
            {**d, "annotations": [Asked(a) for a in d["annotations"]]} for d in load()
        ]
    monkeypatch.setattr(Asked, "times", 0)
    cfg = config("GeneralizedRCNN", 2)

    def looks(function):
        before = Asked.times
        function(cfg)
        return Asked.times - before

    alone = looks(training_dicts)
    assert alone > 0
    with read_once(NAMES):
        assert looks(check_data) == 2 * alone  # data sets of the same size
        assert looks(training_dicts) == 0
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1  # another model; what is wrong is told each time
        for _ in range(2):
            with pytest.raises(DataError, match=r"has category 1 \('dog'\)"):
                training_dicts(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    assert looks(training_dicts) == alone
    DatasetCatalog[NAMES[0]] = lambda: [{**load()[0], "annotations": [{"category_id": 0}]}]
    with read_once(NAMES[:1]), pytest.raises(DataError, match="has no 'bbox'"):
        training_dicts(cfg)


def test_a_file_is_parsed_once_to_be_checked(tmp_path, monkeypatch):
    boxes(tmp_path, "val", "cat", "dog")
    parsed = []
    parse = json.load
    monkeypatch.setattr(json, "load", lambda file: parsed.append(file.name) or parse(file))
    check_data(config("GeneralizedRCNN", 2), training=False)
    assert len(parsed) == 2  # and once by pycocotools
