import numpy as np
import pytest
import torch
from PIL import Image

from divdr import get_divdr_config
from divdr.data import SemanticCropMapper
from divdr.errors import ConfigError, DataError


def mapper(**crop) -> SemanticCropMapper:
    cfg = get_divdr_config()
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TRAIN = (20,)
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = crop.get("size", [16, 24])
    for name, value in crop.get("more", {}).items():
        cfg.INPUT[name] = value
    cfg.INPUT.CROP.TYPE = crop.get("type", "absolute")
    cfg.INPUT.CROP_PADDING = crop.get("padding", "mean")
    cfg.MODEL.PIXEL_MEAN = [10.0, 20.0, 30.0]
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
    return SemanticCropMapper(cfg)


@pytest.fixture
def pair(tmp_path):
    labels = np.zeros((20, 30), dtype=np.uint8)
    labels[:, 10:20], labels[:, 20:] = 1, 2
    labels[0, 0] = 255
    image = np.stack([labels * 50, labels * 20, labels * 10], axis=2)
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(labels).save(tmp_path / "label.png")
    return {
        "file_name": str(tmp_path / "image.png"),
        "sem_seg_file_name": str(tmp_path / "label.png"),
        "width": 30,
        "height": 20,
    }


def test_image_and_labels_are_cropped_together(pair):
    item = mapper()(pair)
    assert item["image"].shape == (3, 16, 24)
    assert item["sem_seg"].shape == (16, 24)
    known = item["sem_seg"] != 255
    assert item["image"][0][known].equal(item["sem_seg"][known] * 50.0)
    assert item["file_name"] == pair["file_name"]
    assert "sem_seg_file_name" in pair, "the data set's own dict stays as it is"


def test_small_images_are_padded_by_mean_and_ignored_label(pair):
    item = mapper(size=[32, 40])(pair)
    assert item["image"].shape == (3, 32, 40)
    assert item["sem_seg"][:20, :30].lt(3).sum() == 20 * 30 - 1
    assert item["sem_seg"][20:].eq(255).all()
    assert item["sem_seg"][:, 30:].eq(255).all()
    assert item["image"][:, 25, 35].tolist() == [10.0, 20.0, 30.0]


def test_small_images_can_be_padded_with_black(pair):
    item = mapper(size=[32, 40], padding="black")(pair)
    assert item["image"][:, 20:].eq(0).all()
    assert item["image"][:, :, 30:].eq(0).all()
    assert item["image"][:, :20, :30].equal(mapper(size=[32, 40])(pair)["image"][:, :20, :30])
    with pytest.raises(ConfigError, match=r"CROP_PADDING must be .* not 'grey'"):
        mapper(padding="grey")


def test_settings_of_size_and_colour(pair):
    # Shorter edge 20 of 20×30; the longer one must stay within 24: 16×24.
    bounded = mapper(size=[20, 30], more={"MAX_SIZE_TRAIN": 24})(pair)
    assert int(bounded["sem_seg"].ne(255).sum()) <= 16 * 24
    assert bounded["sem_seg"][16:].eq(255).all()
    assert bounded["sem_seg"][:, 24:].eq(255).all()
    between = {"MIN_SIZE_TRAIN": (20, 40), "MIN_SIZE_TRAIN_SAMPLING": "range"}
    grown = mapper(size=[1.0, 1.0], type="relative", more=between)
    heights = {grown(pair)["sem_seg"].shape[0] for _ in range(20)}
    assert len(heights) > 2  # and none of them padded
    assert all(20 <= height <= 40 for height in heights)
    blue = mapper(size=[20, 30], more={"FORMAT": "BGR"})(pair)["image"]
    assert blue.flip(0).equal(mapper(size=[20, 30])(pair)["image"])


@pytest.mark.parametrize(("kind", "dims"), [("vertical", [0]), ("horizontal", [1]), ("none", [])])
def test_flips_are_as_the_config_says(pair, kind, dims):
    plain = mapper(size=[20, 30])(pair)["sem_seg"]
    flipping = mapper(size=[20, 30], more={"RANDOM_FLIP": kind})
    seen = [flipping(pair)["sem_seg"] for _ in range(20)]
    allowed = [plain, plain.flip(dims)] if dims else [plain]
    for which in allowed:
        assert any(labels.equal(which) for labels in seen)
    assert all(any(labels.equal(which) for which in allowed) for labels in seen)


def test_flip_turns_both(pair):
    cfg_mapper = mapper(size=[20, 30])
    from detectron2.data import transforms as T

    cfg_mapper.augmentations = T.AugmentationList([T.RandomFlip(prob=1.0)])
    item = cfg_mapper(pair)
    assert item["sem_seg"][5].tolist() == [2] * 10 + [1] * 10 + [0] * 10
    assert item["image"][0, 5, 0] == 100.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, f: d.pop("sem_seg_file_name"), r"image .*image\.png has no label file"),
        (lambda d, f: (f / "label.png").unlink(), r"label\.png does not exist"),
        (lambda d, f: (f / "image.png").write_bytes(b"no image"), r"image\.png cannot be read"),
        (
            lambda d, f: Image.fromarray(np.full((20, 30), 7, np.uint8)).save(f / "label.png"),
            r"label\.png holds 7; classes are 0 to 2, and 255 is ignored",
        ),
        (
            lambda d, f: Image.fromarray(np.zeros((20, 29), np.uint8)).save(f / "label.png"),
            r"label\.png is 20×29 pixels, its image 20×30",
        ),
        (
            lambda d, f: Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(f / "label.png"),
            r"label\.png cannot be used: it is in colours \(mode RGB\), and must have one",
        ),
    ],
)
def test_what_is_wrong_is_reported_with_the_file(pair, tmp_path, change, message):
    change(pair, tmp_path)
    with pytest.raises(DataError, match=message):
        mapper()(pair)


def test_errors_in_workers_keep_their_sentence(pair):
    from torch.utils.data import DataLoader

    from divdr.engine import one_sentence

    del pair["sem_seg_file_name"]
    bad = mapper()
    loader = DataLoader(_Mapped([pair], bad), num_workers=1, collate_fn=list)
    with pytest.raises(DataError) as caught:
        next(iter(loader))
    assert one_sentence(caught.value) == f"image {pair['file_name']} has no label file"


class _Mapped(torch.utils.data.Dataset):
    def __init__(self, items, function):
        self.items, self.function = items, function

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.function(self.items[index])
