"""Whole batches of images in memory: the same as one by one, by seed and position alone."""

import itertools

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import given, settings
from hypothesis import strategies as st

from divdr import get_divdr_config
from divdr.data import ClassificationMapper, build_test_loader, build_train_loader
from divdr.data.classification.stacked_images import (
    Augmentation,
    random_numbers,
    split_mix_64,
)

GREY, COLOUR = (6, 8), (6, 8, 3)


@pytest.fixture
def registered():
    """Registers 20 images of a shape; returns the data set's name."""
    names = []

    def register(shape, count=20):
        generator = np.random.default_rng(len(names))
        records = [
            {"pixels": each, "label": index % 3, "image_id": f"image {index}"}
            for index, each in enumerate(generator.integers(0, 256, (count, *shape), np.uint8))
        ]
        name = f"stacked_{len(names)}"
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(classes=["a", "b", "c"], evaluator_type="classification")
        names.append(name)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def config(name, image_format="L", flip="horizontal", **settings):
    cfg = get_divdr_config()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name,), (name,)
    cfg.INPUT.DATASET_MAPPER_NAME = "classification"
    cfg.INPUT.FORMAT, cfg.INPUT.RANDOM_FLIP = image_format, flip
    cfg.MODEL.PIXEL_MEAN = [7.0] if image_format == "L" else [7.0, 8.0, 9.0]
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 3
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS, cfg.SEED = 4, 0, 5
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    for key, value in settings.items():
        cfg.INPUT.CLASSIFICATION[key] = value
    return cfg


def batches(cfg, count, start=0):
    loader = build_train_loader(cfg)
    loader.batch_sampler.start = start
    return list(itertools.islice(loader, count))


def same(left, right):
    assert [[d.keys() for d in batch] for batch in left] == [
        [d.keys() for d in batch] for batch in right
    ]
    for a, b in zip(itertools.chain(*left), itertools.chain(*right), strict=True):
        assert a["image"].equal(b["image"])
        assert {**a, "image": 0} == {**b, "image": 0}
    return True


@pytest.mark.parametrize("workers", [0, 2])
def test_neither_workers_nor_resuming_change_an_image(registered, workers):
    cfg = config(registered(GREY), PAD_CROP=2, CUTOUT=3)
    whole = batches(cfg, 8)
    cfg.DATALOADER.NUM_WORKERS = workers
    assert same(batches(cfg, 8), whole)
    assert same(batches(cfg, 3, start=5), whole[5:])
    cfg.SEED = 6
    other = [item["image"] for batch in batches(cfg, 8) for item in batch]
    assert not any(a.equal(b["image"]) for a, b in zip(other, itertools.chain(*whole), strict=True))


def test_an_image_is_augmented_anew_wherever_it_stands_in_the_stream(registered):
    cfg = config(registered(GREY, count=1), PAD_CROP=2)
    items = [item["image"] for batch in batches(cfg, 10) for item in batch]
    assert len({tuple(image.flatten().tolist()) for image in items}) > 20  # of 40; 50 are possible


@pytest.mark.parametrize(
    ("shape", "image_format"),
    [(GREY, "L"), (GREY, "RGB"), (COLOUR, "RGB"), (COLOUR, "BGR"), ((8, 8), "L")],
)
def test_batches_hold_what_the_mapper_makes_of_each_image(registered, shape, image_format):
    name = registered(shape)
    cfg = config(name, image_format, "none", SIZE=8 if shape == (8, 8) else 0, TEST_BATCH=7)
    mapper = ClassificationMapper(cfg, is_train=True)
    by_name = {d["image_id"]: mapper(d) for d in DatasetCatalog.get(name)}
    assert mapper.stacked(DatasetCatalog.get(name)) is not None
    trained = list(itertools.chain(*batches(cfg, 5)))
    tested = list(itertools.chain(*build_test_loader(cfg, name)))
    assert [item["image_id"] for item in tested] == list(by_name)
    assert {item["image_id"] for item in trained} == set(by_name)
    for item in trained + tested:
        wanted = by_name[item["image_id"]]
        assert item["image"].equal(wanted["image"])
        assert item["image"].dtype == torch.float32
        assert item.pop("image_key")
        assert {**item, "image": 0} == {**wanted, "image": 0}


def test_images_that_something_would_change_come_one_by_one(registered):
    name = registered(GREY)
    dicts = DatasetCatalog.get(name)
    assert ClassificationMapper(config(name, SIZE=4)).stacked(dicts) is None
    assert ClassificationMapper(config(registered(COLOUR))).stacked(dicts[:1]) is not None
    colours = DatasetCatalog.get(registered(COLOUR))
    assert ClassificationMapper(config(name)).stacked(colours) is None  # PIL makes them grey
    assert ClassificationMapper(config(name)).stacked([*dicts, {"file_name": "x.png"}]) is None
    smaller = {"pixels": dicts[0]["pixels"][:5]}
    assert ClassificationMapper(config(name)).stacked([*dicts, smaller]) is None

    class Own(ClassificationMapper):
        pass

    assert Own(config(name)).stacked(dicts) is None


@settings(max_examples=60, deadline=None)
@given(
    flip=st.booleans(),
    pad=st.integers(0, 3),
    cutout=st.integers(0, 7),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**40),
)
def test_augmentations_image_by_image(flip, pad, cutout, size, channels, seed):
    generator = np.random.default_rng(seed)
    pixels = torch.from_numpy(generator.integers(0, 256, (5, channels, *size), np.uint8))
    fill = torch.arange(channels)[:, None, None] + 0.5
    made = Augmentation(flip, pad, cutout, fill)
    ends = made.ends(*size)
    assert ends == [2] * flip + [2 * pad + 1] * 2 * (pad > 0) + list(size) * (cutout > 0)
    numbers = torch.from_numpy(generator.integers(0, ends or 1, (5, len(ends))))
    found = made(pixels, numbers)
    assert found.dtype == torch.float32
    for image, drawn, result in zip(pixels.float().numpy(), numbers.tolist(), found, strict=True):
        drawn = iter(drawn)
        if flip and next(drawn):
            image = image[:, :, ::-1]
        if pad:
            top, left = next(drawn), next(drawn)
            padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
            image = padded[:, top : top + size[0], left : left + size[1]]
        if cutout:
            row, column = next(drawn) - cutout // 2, next(drawn) - cutout // 2
            image = image.copy()
            for r in range(row, row + cutout):
                for c in range(column, column + cutout):
                    if 0 <= r < size[0] and 0 <= c < size[1]:
                        image[:, r, c] = fill[:, 0, 0]
        assert result.numpy().tolist() == image.tolist()


def test_split_mix_64_as_published():
    # The first outputs for this start, as in the test vectors of other implementations.
    wanted = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    start = np.array([1234567], np.uint64)
    assert split_mix_64(start, np.arange(3, dtype=np.uint64)).tolist() == wanted


def test_random_numbers_are_even_and_independent_of_the_batch():
    ends = [2, 5, 3]
    numbers = random_numbers(9, range(30_000), ends)
    for column, end in zip(numbers.T, ends, strict=True):
        shares = torch.bincount(column, minlength=end) / 30_000
        assert len(shares) == end
        assert (shares - 1 / end).abs().max() < 0.015  # five deviations
    pairs = torch.bincount(numbers[:, 0] * 5 + numbers[:, 1]) / 30_000
    assert (pairs - 0.1).abs().max() < 0.01
    following = torch.bincount(numbers[:-1, 1] * 5 + numbers[1:, 1]) / 29_999
    assert (following - 0.04).abs().max() < 0.006
    some = torch.randperm(30_000, generator=torch.Generator().manual_seed(0))[:50]
    assert random_numbers(9, some.tolist(), ends).equal(numbers[some])
    assert random_numbers(2**70, [2**40], [2**31]).item() >= 0
    assert random_numbers(9, [3], []).shape == (1, 0)
    assert not random_numbers(8, range(50), ends).equal(numbers[:50])


def test_an_image_can_be_changed_alone(registered):
    items = batches(config(registered(GREY), flip="none"), 1)[0]
    others = [item["image"].clone() for item in items[1:]]
    items[0]["image"] += 1
    assert all(item["image"].equal(kept) for item, kept in zip(items[1:], others, strict=True))
