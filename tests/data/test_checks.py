"""Detection data that is not as it must be: reported with the name of the file, and early."""

import itertools
import json
import logging

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode
from PIL import Image

from divdr import get_divdr_config
from divdr.data import build_test_loader, build_train_loader, check_data, training_dicts
from divdr.engine import one_sentence
from divdr.errors import DataError

NAMES = ("bad_data_a", "bad_data_b")
SQUARE = [4.0, 4.0, 20.0, 4.0, 20.0, 20.0, 4.0, 20.0]


class Data:
    """Three images of 48 × 32 pixels with one annotation each, to be spoilt before :meth:`load`."""

    def __init__(self, folder):
        self.folder, self.file = folder, folder / "boxes.json"
        self.images = [
            {"id": n, "file_name": f"{n}.png", "width": 48, "height": 32} for n in (1, 2, 3)
        ]
        self.annotations = [self.annotation(n) for n in (1, 2, 3)]
        self.categories = [{"id": 10, "name": "cat"}, {"id": 20, "name": "dog"}]
        for image in self.images:
            pixels = np.full((32, 48, 3), image["id"] * 40, np.uint8)
            Image.fromarray(pixels).save(folder / image["file_name"])

    def annotation(self, image, **change):
        points = [8, 8, 2, 12, 12, 2]
        wanted = {"id": image, "image_id": image, "category_id": 10, "bbox": [4, 4, 16, 16]}
        wanted |= {"area": 256, "iscrowd": 0, "segmentation": [list(SQUARE)]}
        return wanted | {"keypoints": points, "num_keypoints": 2} | change

    def write(self):
        parts = ("images", "annotations", "categories")
        self.file.write_text(json.dumps({part: getattr(self, part) for part in parts}))

    def loader(self, cfg=None):
        self.write()
        return build_train_loader(cfg or config())

    def complaint(self, cfg=None):
        """The sentence, wherever it is reported first: at the start or with an image."""
        with pytest.raises(DataError) as caught:
            list(itertools.islice(self.loader(cfg), 3))
        reported = one_sentence(caught.value)
        assert str(self.folder) in reported
        return reported


@pytest.fixture
def data(tmp_path):
    points = {"keypoint_names": ["left", "right"], "keypoint_flip_map": [["left", "right"]]}
    register_coco_instances(NAMES[0], points, str(tmp_path / "boxes.json"), str(tmp_path))
    yield Data(tmp_path)
    for name in NAMES:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
        if name in MetadataCatalog:
            MetadataCatalog.remove(name)


def config(**more):
    cfg = get_divdr_config()
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 2
    cfg.INPUT.MIN_SIZE_TRAIN = (32,)
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.DATASETS.TRAIN = NAMES[:1]
    cfg.SOLVER.IMS_PER_BATCH = 1
    cfg.SEED = 0
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.merge_from_list([part for pair in more.items() for part in (pair[0], pair[1])])
    return cfg


def test_a_category_that_the_model_has_not(data):
    data.annotations[1]["category_id"] = 20
    cfg = config(**{"MODEL.ROI_HEADS.NUM_CLASSES": 1})
    assert data.complaint(cfg) == (
        f"data set 'bad_data_a' ({data.file}): an annotation of image {data.folder}/2.png has "
        "category 1 ('dog'), counted from 0, but MODEL.ROI_HEADS.NUM_CLASSES is 1; set it to 2"
    )
    elsewhere = {"file_name": str(data.folder / "1.png"), "annotations": []}
    DatasetCatalog.register(NAMES[1], lambda: [elsewhere])
    several = {"DATASETS.TRAIN": NAMES[::-1], "MODEL.ROI_HEADS.NUM_CLASSES": 1}
    several["DATALOADER.FILTER_EMPTY_ANNOTATIONS"] = False
    assert data.complaint(config(**several)).startswith("data set 'bad_data_a' (")
    retinanet = {"MODEL.META_ARCHITECTURE": "RetinaNet", "MODEL.RETINANET.NUM_CLASSES": 1}
    assert "MODEL.RETINANET.NUM_CLASSES is 1" in data.complaint(config(**retinanet))
    for architecture in ("SomebodysOwn", "ProposalNetwork"):
        cfg.MODEL.META_ARCHITECTURE = architecture
        assert len(training_dicts(cfg)) == 3
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    loader = build_train_loader(cfg, lambda record: record["annotations"])
    assert len(next(iter(loader))) == 1, "somebody's own mapper may make something else of it"


def test_a_category_that_nothing_names(data):
    data.annotations[2]["category_id"] = 30
    assert data.complaint() == (
        f"data set 'bad_data_a' ({data.file}): annotation 3 of image 3.png has category 30, which "
        "the file's 'categories' do not list"
    )


def test_a_category_in_dicts_of_ones_own(data):
    box = {"bbox": [0, 0, 9, 9], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 5}
    path = str(data.folder / "1.png")
    DatasetCatalog.register(NAMES[1], lambda: [{"file_name": path, "annotations": [box]}])
    MetadataCatalog.get(NAMES[1]).thing_classes = ["cat", "dog"]
    data.categories[0]["name"], data.categories[1]["name"] = "cat", "dog"
    cfg = config(**{"DATASETS.TRAIN": NAMES})
    assert data.complaint(cfg) == (
        f"data set 'bad_data_b': an annotation of image {path} has category 5, but the data "
        "set has 2 of them, from 0"
    )


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({"bbox": None}, {}, "'NoneType' has no len|bbox None"),
        ({"bbox": []}, {}, r"annotation 2 of image 2\.png has bbox \[\], which must be four"),
        ({"bbox": [1, 2, 3]}, {}, r"2\.png has bbox \[1, 2, 3\], which must be four"),
        ({"bbox": [1, 2, 3, float("nan")]}, {}, r"2\.png has bbox \[1, 2, 3, nan\]"),
        ({"segmentation": []}, {"MODEL.MASK_ON": True}, r"2\.png has no segmentation"),
        (
            {"segmentation": {"size": [32, 48], "counts": [0, 1536]}},
            {"MODEL.MASK_ON": True},
            r"2\.png has an RLE mask, but INPUT.MASK_FORMAT is polygon; set it to bitmask",
        ),
        (
            {"segmentation": {"size": [9, 9], "counts": [0, 81]}},
            {"MODEL.MASK_ON": True, "INPUT.MASK_FORMAT": "bitmask"},
            r"2\.png has an RLE mask of size \[9, 9\] in an image of \[32, 48\]",
        ),
        (
            {"segmentation": {"size": [32, 48], "counts": [5, 99999]}},
            {"MODEL.MASK_ON": True, "INPUT.MASK_FORMAT": "bitmask"},
            r"2\.png cannot be used \(ValueError: Invalid RLE",
        ),
        ({"keypoints": [1, 1, 2]}, {"MODEL.KEYPOINT_ON": True}, r"2\.png has 3 values for key"),
        ({"ignore": 1}, {}, r'boxes\.json\): "ignore" in COCO json file is not supported'),
        ({"id": 1}, {}, "Annotation ids in .* are not unique"),
    ],
)
def test_annotations_that_cannot_be_used(data, change, settings, message):
    data.annotations[1] = data.annotation(2, **change)
    reported = data.complaint(config(**settings))
    assert str(data.folder) in reported
    with pytest.raises(DataError, match=message):
        raise DataError(reported)


@pytest.mark.parametrize("key", ["bbox", "id", "image_id", "category_id"])
def test_annotations_that_lack_a_key(data, key):
    del data.annotations[1][key]
    assert repr(key) in data.complaint()


def test_annotations_of_no_image_are_left_out(data, caplog):
    data.annotations.append(data.annotation(99))
    assert len(next(iter(data.loader()))) == 1


def test_polygons_of_odd_length_are_left_out_by_detectron2(data):
    data.annotations[0]["segmentation"] = [SQUARE[:-1]]
    data.write()
    cfg = config(**{"MODEL.MASK_ON": True, "DATALOADER.FILTER_EMPTY_ANNOTATIONS": False})
    assert [len(d["annotations"]) for d in training_dicts(cfg)] == [0, 1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{not json", "the file is not valid JSON"),
        ("[1, 2]", "the file holds no JSON object"),
        ("{}", "the file has no list of 'images'"),
        ('{"images": [{"id": 1}], "categories": []}', "entry 0 of 'images' lacks 'file_name'"),
        ('{"images": [], "categories": []}', "the list of 'categories' is empty"),
        ('{"images": [7]}', "entry 0 of 'images' is no JSON object"),
        ('{"images": [], "categories": [{"id": 1, "name": "a"}]}', "Dataset 'bad_data_a' is empty"),
    ],
)
def test_files_that_are_not_coco(data, text, message):
    data.file.write_text(text)
    with pytest.raises(DataError) as caught:
        training_dicts(config())
    assert str(caught.value).startswith(f"data set 'bad_data_a' ({data.file}): {message}")


def test_no_annotations_at_all(data):
    data.annotations = []
    assert data.complaint() == (
        f"data set 'bad_data_a' ({data.file}): no image has an annotation to train on; "
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS False keeps images without"
    )
    cfg = config(**{"DATALOADER.FILTER_EMPTY_ANNOTATIONS": False})
    assert [len(b[0]["instances"]) for b in itertools.islice(data.loader(cfg), 3)] == [0, 0, 0]


def test_background_with_masks_and_crops(data):
    # Detectron2 makes boxes anew from masks after a crop, and such an image has no masks.
    data.annotations = [data.annotation(1, iscrowd=1)]
    keys = ("DATALOADER.FILTER_EMPTY_ANNOTATIONS", "MODEL.MASK_ON", "INPUT.CROP.ENABLED")
    cfg = config(**dict(zip(keys, (False, True, True), strict=True)))
    items = [batch[0] for batch in itertools.islice(data.loader(cfg), 3)]
    assert [len(item["instances"]) for item in items] == [0, 0, 0]
    for item in items:
        assert item["instances"].image_size == tuple(item["image"].shape[1:])
        assert "annotations" not in item


@pytest.mark.parametrize("learn", ["boxes", "masks", "keypoints"])
def test_empty_boxes_are_counted_and_left_out(data, learn, caplog):
    for box in ([4, 4, 0, 8], [4, 4, 8, 0], [48, 0, 9, 9]):
        data.annotations.append(data.annotation(2, id=len(data.annotations) + 9, bbox=box))
    cfg = config(**{"MODEL.MASK_ON": learn == "masks", "MODEL.KEYPOINT_ON": learn == "keypoints"})
    with caplog.at_level(logging.WARNING):
        loader = data.loader(cfg)
    warnings = [r.getMessage() for r in caplog.records if "no area" in r.getMessage()]
    assert len(warnings) == 1
    assert "3 boxes have no area" in warnings[0]
    assert warnings[0].endswith(f"the first in image {data.folder}/2.png")
    for (item,) in itertools.islice(loader, 3):
        assert len(item["instances"]) == 1
        assert item["instances"].has("gt_masks") == (learn == "masks")
        assert item["instances"].has("gt_keypoints") == (learn == "keypoints")


def test_missing_images_are_counted_and_the_first_is_named(data):
    (data.folder / "1.png").unlink()
    data.images.append({"id": 4, "file_name": "none/4.png", "width": 48, "height": 32})
    data.annotations.append(data.annotation(4))
    reported = (
        f"data set 'bad_data_a' ({data.file}): file {data.folder}/1.png does not exist, nor do 1"
    )
    assert data.complaint().startswith(reported)
    with pytest.raises(DataError, match=r"1\.png does not exist"):
        build_test_loader(config(), NAMES[0])


@pytest.mark.parametrize(("images", "expected"), [(None, [1, 2, 3]), (2, [1, 2]), (9, [1, 2, 3])])
def test_few_images_are_spread_over_the_data_set(data, images, expected):
    data.write()
    records = DatasetCatalog.get(NAMES[0])
    assert [r["image_id"] for r in records] == [1, 2, 3]
    found = [i["image_id"] for (i,) in build_test_loader(config(), NAMES[0], images)]
    assert found == expected
    found = [i["image_id"] for (i,) in build_test_loader(config(), [NAMES[0]] * 2, images=3)]
    assert found == [1, 3, 2]  # of 1, 2, 3, 1, 2, 3


def test_images_elsewhere_are_not_looked_for(data):
    data.images[0]["file_name"] = "http://127.0.0.1/1.png"
    MetadataCatalog.remove(NAMES[0])
    DatasetCatalog.remove(NAMES[0])
    register_coco_instances(NAMES[0], {}, str(data.file), "")
    for image in data.images[1:]:
        image["file_name"] = str(data.folder / image["file_name"])
    data.write()
    assert len(training_dicts(config())) == 3


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncate, "cannot be read as an image (image file is truncated"),
        (lambda path: path.write_text("no image"), "cannot be read as an image (cannot identify"),
        (
            lambda path: Image.new("RGB", (40, 32)).save(path),
            "error: Mismatched image shape for image",
        ),
    ],
)
def test_unreadable_images_are_named(data, spoil, message, workers):
    rows = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)
    Image.fromarray(rows).save(data.folder / "2.png")
    spoil(data.folder / "2.png")
    reported = data.complaint(config(**{"DATALOADER.NUM_WORKERS": workers}))
    assert f"{data.folder}/2.png" in reported
    assert message in f"error: {reported}"
    with pytest.raises(DataError) as caught:
        list(build_test_loader(config(**{"DATALOADER.NUM_WORKERS": workers}), NAMES[:1]))
    assert one_sentence(caught.value) == reported


def test_sizes_that_are_no_numbers(data):
    data.images[1]["width"] = None
    assert data.complaint().endswith(
        "entry 1 of 'images' (2.png) has width None, which must be a number of pixels"
    )


def evaluated(**more):
    return config(**{"DATASETS.TRAIN": (), "DATASETS.TEST": NAMES[:1], **more})


def test_evaluation_wants_more_of_a_file(data):
    data.write()
    cfg = evaluated(**{"MODEL.MASK_ON": True, "MODEL.KEYPOINT_ON": True})
    cfg.TEST.KEYPOINT_OKS_SIGMAS = [0.1, 0.1]
    check_data(cfg, training=False)
    for key in ("area", "iscrowd", "segmentation", "num_keypoints"):
        data.annotations[1] = data.annotation(2)
        del data.annotations[1][key]
        data.write()
        with pytest.raises(DataError, match=rf"annotation 2 of image 2\.png lacks '{key}'"):
            check_data(cfg, training=False)
    data.annotations[1] = data.annotation(2, segmentation=[])
    data.write()
    with pytest.raises(DataError, match="which is no mask"):
        check_data(cfg, training=False)
    data.annotations[1] = data.annotation(2, keypoints=[1, 2])  # beside a mask that is one
    data.write()
    with pytest.raises(DataError, match=r"keypoints \[1, 2\], which must be three numbers"):
        check_data(cfg, training=False)
    check_data(evaluated(), training=False)
    seven = evaluated(**{"MODEL.ROI_HEADS.NUM_CLASSES": 7})
    with pytest.raises(DataError, match=r"NUM_CLASSES is 7, but data set 'bad_data_a' has 2"):
        check_data(seven, training=False)
