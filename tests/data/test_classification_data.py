"""Classification data sets in their published formats, folders of classes, and the mapper."""

import gzip
import os
import pickle
import struct
import subprocess

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from drawn_classification import (
    draw_published,
    write_cifar100,
    write_cub200,
    write_fashion_mnist,
    write_food101,
    write_imagenet32,
    write_tiny_imagenet,
)
from PIL import Image
from prepared.fashion_mnist import FILES, prepare_fashion_mnist
from sklearn.datasets import load_digits

from divdr.config import get_divdr_config
from divdr.data import (
    ClassificationMapper,
    build_test_loader,
    build_train_loader,
    classification_batches,
    describe,
    register_class_folders,
)
from divdr.data.classification import register_published
from divdr.data.classification.formats import read_cifar, read_fashion_mnist, read_imagenet32
from divdr.data.classification.published_lists import read_cub200, read_food101, read_tiny_imagenet
from divdr.errors import ConfigError, DataError


@pytest.fixture
def published(tmp_path, names_under):
    """Drawn data in the published formats, under their names in the catalogue."""
    folder = tmp_path / "data"
    draw_published(folder)
    with names_under(folder):
        register_published(folder)
        yield folder


def config(name, classes=10, **settings):
    cfg = get_divdr_config()
    cfg.INPUT.DATASET_MAPPER_NAME = "classification"
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = classes
    cfg.DATASETS.TRAIN = (name,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    for key, value in settings.items():
        cfg.INPUT.CLASSIFICATION[key] = value
    return cfg


def test_cifar_100_pixel_by_pixel(published):
    with (published / "cifar-100-python" / "train").open("rb") as file:
        batch = pickle.load(file, encoding="bytes")
    record = DatasetCatalog.get("cifar100_train")[7]
    assert record["label"] == 7
    row = batch[b"data"][7]
    # Red, green and blue planes of 1024 pixels each, row by row.
    assert record["pixels"][5, 9].tolist() == [row[5 * 32 + 9 + 1024 * c] for c in range(3)]
    coarse = describe(["cifar100_train"]).coarse
    assert coarse[:5] == batch[b"coarse_labels"][:5]
    assert len(coarse) == 100


def test_the_binary_version_of_cifar_is_the_same(tmp_path):
    coarse_of = np.arange(100) % 20
    for name, binary in (("cifar-100-python", False), ("cifar-100-binary", True)):
        generator = np.random.default_rng(3)
        write_cifar100(tmp_path / name, generator, coarse_of, binary=binary)
    one = read_cifar(tmp_path / "cifar-100-python", "test", 100)
    other = read_cifar(tmp_path / "cifar-100-binary", "test", 100)
    assert np.array_equal(one.pixels, other.pixels)
    assert np.array_equal(one.labels, other.labels)
    assert one.coarse == other.coarse


def test_cifar_10_takes_its_five_batches_in_order(tmp_path):
    for version in ("py", "bin"):
        folder = tmp_path / f"cifar-10-batches-{version}"
        folder.mkdir()
        for part in range(1, 6):
            data = np.full((2, 3072), part, np.uint8)
            if version == "py":
                batch = pickle.dumps({b"data": data, b"labels": [part, 0]}, protocol=2)
                (folder / f"data_batch_{part}").write_bytes(batch)
            else:
                rows = np.hstack([np.array([[part], [0]], np.uint8), data])
                (folder / f"data_batch_{part}.bin").write_bytes(rows.tobytes())
        found = read_cifar(folder, "train", 10)
        assert found.labels.tolist() == [1, 0, 2, 0, 3, 0, 4, 0, 5, 0]
        assert found.pixels[:, 0, 0, 0].tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    (folder / "train").write_bytes(pickle.dumps({b"data": Evil()}))
    with pytest.raises(DataError, match=r"is no batch of CIFAR-100 \(it holds posix\.mkdir\)"):
        read_cifar(folder, "train", 100)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("packed", [False, True])
def test_imagenet32_in_the_order_of_its_batches_with_labels_from_0(tmp_path, packed):
    write_imagenet32(tmp_path, np.random.default_rng(4), packed=packed, count=1005)
    found = read_imagenet32(tmp_path, "train")
    assert found.pixels.shape == (1005, 32, 32, 3)
    assert found.labels.tolist() == [*range(1000), *range(5)]
    row = np.random.default_rng(4).integers(0, 256, (101, 3072), dtype=np.uint8)[7]
    assert found.pixels[7, 5, 9].tolist() == [row[5 * 32 + 9 + 1024 * c] for c in range(3)]
    assert len(read_imagenet32(tmp_path, "test").labels) == 1005
    broken = next(tmp_path.glob("Imagenet32_val*/val_data*"))
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(DataError, match=r"val_data.* is no batch of ImageNet32"):
        read_imagenet32(tmp_path, "test")
    broken.unlink()
    with pytest.raises(DataError, match="val_data cannot be read"):
        read_imagenet32(tmp_path, "test")


def test_batches_of_imagenet32_that_would_run_code_are_refused(tmp_path):
    for folder, name in (("Imagenet32_val", "val_data"), ("Imagenet32_val_npz", "val_data.npz")):
        place = tmp_path / name / folder
        place.mkdir(parents=True)
        batch = {"data": np.zeros((1, 3072), np.uint8), "labels": np.array([os.getcwd], object)}
        if name.endswith("npz"):
            np.savez(place / name, **batch)
        else:
            (place / name).write_bytes(pickle.dumps({**batch, "labels": os.getcwd}, protocol=2))
        with pytest.raises(DataError, match="is no batch of ImageNet32"):
            read_imagenet32(tmp_path / name, "test")


def test_food_101_and_cub_200_by_their_published_lists(tmp_path, names_under):
    write_food101(tmp_path / "food-101", np.random.default_rng(0))
    write_cub200(tmp_path / "CUB_200_2011", np.random.default_rng(0))
    with names_under(tmp_path):
        register_published(tmp_path)
        dish = DatasetCatalog.get("food101_test")[100]
        assert dish["file_name"] == str(tmp_path / "food-101/images/dish_100/10001.jpg")
        assert (dish["label"], len(DatasetCatalog.get("food101_train"))) == (100, 101)
        birds = {split: DatasetCatalog.get(f"cub200_{split}") for split in ("train", "test")}
    # The list has 1 for what is to train on: every class's second image.
    assert [bird["label"] for bird in birds["train"]] == list(range(200))
    assert birds["train"][4]["image_id"] == "cub200_train/005.Bird/Bird_1"
    assert birds["test"][4]["file_name"].endswith("images/005.Bird/Bird_0.jpg")
    (tmp_path / "CUB_200_2011/image_class_labels.txt").write_text("1 1\n")
    with pytest.raises(DataError, match=r"image 2 of images\.txt is not in the other lists"):
        read_cub200(tmp_path / "CUB_200_2011", "train")
    (tmp_path / "CUB_200_2011/images.txt").write_text("1\n")
    with pytest.raises(DataError, match="a number and a value in every line"):
        read_cub200(tmp_path / "CUB_200_2011", "train")
    (tmp_path / "food-101/meta/test.txt").write_text("soup/1\n")
    with pytest.raises(DataError, match=r"names 'soup/1', whose class is not in meta/classes\.txt"):
        read_food101(tmp_path / "food-101", "test")


def test_tiny_imagenet_by_its_folders_and_list(tmp_path, names_under):
    folder = tmp_path / "tiny-imagenet-200"
    write_tiny_imagenet(folder, np.random.default_rng(0))
    with names_under(tmp_path):
        register_published(tmp_path)
        training = DatasetCatalog.get("tiny_imagenet_train")
        tests = DatasetCatalog.get("tiny_imagenet_test")
    assert [image["label"] for image in training] == list(range(200))
    assert training[7]["file_name"].endswith("train/n00000007/images/n00000007_0.JPEG")
    assert [image["label"] for image in tests] == list(range(19, -1, -1))
    assert tests[0]["file_name"] == str(folder / "val/images/val_19.JPEG")
    (folder / "val/val_annotations.txt").write_text("val_0.JPEG\tnobody\n")
    with pytest.raises(DataError, match=r"names .*nobody', whose class is not in wnids\.txt"):
        read_tiny_imagenet(folder, "test")


def test_fashion_mnist_and_files_of_it_that_cannot_be(published):
    folder = published / "fashion_mnist"
    found = read_fashion_mnist(folder, "test")
    raw = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    assert found.pixels.shape == (12, 28, 28)
    assert found.pixels[2, 3, 4] == raw[16 + 2 * 784 + 3 * 28 + 4]
    assert found.labels.tolist() == [*range(10), 0, 1]
    (folder / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 3) + b"abc")
    with pytest.raises(DataError, match="holds 12 images, but 3 labels"):
        read_fashion_mnist(folder, "test")
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="is no IDX file of 1 dimensions"):
        read_fashion_mnist(folder, "test")
    (folder / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        read_fashion_mnist(folder, "train")


def test_digits_are_scikit_learn_s():
    records = DatasetCatalog.get("digits_train") + DatasetCatalog.get("digits_test")
    data = load_digits()
    assert [r["label"] for r in records] == data.target.tolist()
    pixels = np.stack([r["pixels"] for r in records])
    np.testing.assert_allclose(pixels / (255 / 16), data.images, atol=0.5 / 15)


@pytest.fixture
def animals(tmp_path, request):
    """A registered folder of two classes, one of them without images in RGB."""
    for name, mode in (("ant", "RGB"), ("bee", "L")):
        folder = tmp_path / "animals" / name
        folder.mkdir(parents=True)
        for index in range(3):
            Image.new(mode, (20, 10 + index), 200 if mode == "L" else (10, 20, 30)).save(
                folder / f"{index}.png"
            )
        (folder / "notes.txt").write_text("no image")
    register_class_folders(request.node.name, str(tmp_path / "animals"))
    yield tmp_path / "animals"
    DatasetCatalog.remove(request.node.name)
    MetadataCatalog.remove(request.node.name)


def test_folders_of_classes(animals, request):
    name = request.node.name
    cfg = config(name, 2, SIZE=16)
    cfg.SOLVER.IMS_PER_BATCH = 6
    items = next(iter(build_train_loader(cfg, seed=0)))
    assert sorted(item["label"] for item in items) == [0, 0, 0, 1, 1, 1]
    assert {tuple(item["image"].shape) for item in items} == {(3, 16, 16)}
    batches = list(classification_batches(cfg, [name], size=4))
    assert [labels.tolist() for _, labels in batches] == [[0, 0, 0, 1], [1, 1]]
    assert len(next(iter(build_test_loader(cfg, name)))) == 6
    with pytest.raises(DataError, match="holds no folder 'wasp'"):
        register_class_folders("more", str(animals), ["ant", "wasp"])
    with pytest.raises(DataError, match="which is none"):
        register_class_folders("more", str(animals / "none"))


def test_labels_and_classes_that_do_not_suit_the_model(animals, request):
    cfg = config(request.node.name, 3)
    with pytest.raises(ConfigError, match=r"NUM_CLASSES is 3, but data set .* has 2 classes"):
        build_train_loader(cfg)
    name = request.node.name
    records = DatasetCatalog.get(name)
    records[4]["label"] = 2
    DatasetCatalog.remove(name)
    DatasetCatalog.register(name, lambda: records)
    with pytest.raises(DataError, match=r"bee/1\.png has label 2; classes are 0 to 1"):
        build_test_loader(config(name, 2), name)


def test_an_image_that_cannot_be_read_is_named(animals, request):
    (animals / "ant" / "1.png").write_bytes(b"no image")
    mapper = ClassificationMapper(config(request.node.name, 2), is_train=False)
    with pytest.raises(DataError, match=r"ant/1\.png cannot be read"):
        mapper({"file_name": str(animals / "ant" / "1.png"), "label": 0})


def map_one(pixels, **settings):
    mapper = ClassificationMapper(image_format="RGB", fill=(7.0, 8.0, 9.0), **settings)
    return mapper({"pixels": pixels, "label": 1})


def test_squares():
    pixels = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    planes = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32))
    assert map_one(pixels)["image"].equal(planes)
    padded = map_one(pixels, size=4)["image"]
    assert padded[:, 1:3].equal(planes)
    assert padded[:, [0, 3]].abs().sum() == 0
    assert map_one(pixels, size=2, square="crop")["image"].equal(planes[:, :, 1:3])
    assert map_one(pixels, size=8)["image"].shape == (3, 8, 8)


def test_augmentations():
    pixels = np.random.default_rng(0).integers(1, 255, (6, 8, 3), dtype=np.uint8)
    plain = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32))
    flips = [map_one(pixels, flip=True)["image"] for _ in range(30)]
    mirrored = sum(image.equal(plain.flip(2)) for image in flips)
    assert mirrored + sum(image.equal(plain) for image in flips) == 30
    assert 5 < mirrored < 25
    flips = [map_one(pixels, flip=True)["image"].equal(plain) for _ in range(400)]
    assert 160 < sum(flips) < 240  # every second one; the deviation is 10

    padded = torch.zeros(3, 10, 12)
    padded[:, 2:8, 2:10] = plain
    windows = {(t, s): padded[:, t : t + 6, s : s + 8] for t in range(5) for s in range(5)}
    places = set()
    for _ in range(200):
        image = map_one(pixels, pad_crop=2)["image"]
        places.add(next(place for place, window in windows.items() if window.equal(image)))
    assert len(places) > 20  # of 25

    fill = torch.tensor([7.0, 8.0, 9.0])[:, None, None].expand_as(plain)
    areas = set()
    for _ in range(100):
        image = map_one(pixels, cutout=3)["image"]
        cut = (image == fill).all(0)
        rows, columns = cut.any(1).nonzero()[:, 0], cut.any(0).nonzero()[:, 0]
        assert cut[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
        assert image[:, ~cut].equal(plain[:, ~cut])
        areas.add(int(cut.sum()))
    assert max(areas) == 9
    assert min(areas) >= 4  # in a corner two of three rows and columns are left


def test_evaluation_has_no_augmentations_and_settings_are_checked():
    cfg = config("digits_train", PAD_CROP=2, CUTOUT=3)
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    pixels = np.random.default_rng(0).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    mapper = ClassificationMapper(cfg, is_train=False)
    assert mapper({"pixels": pixels})["image"].permute(1, 2, 0).numpy().tolist() == pixels.tolist()
    assert ClassificationMapper(cfg, is_train=True).augmentation.pad_crop == 2
    cfg.INPUT.FORMAT = "L"
    with pytest.raises(ConfigError, match=r"INPUT\.FORMAT L has 1 channels, MODEL\.PIXEL_MEAN 3"):
        ClassificationMapper(cfg, is_train=True)
    cfg.INPUT.FORMAT, cfg.INPUT.RANDOM_FLIP = "BGR", "vertical"
    with pytest.raises(ConfigError, match="none or horizontal"):
        ClassificationMapper(cfg, is_train=True)
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.CLASSIFICATION.PAD_CROP = cfg.INPUT.CLASSIFICATION.CUTOUT = 0
    mapper = ClassificationMapper(cfg, is_train=True)
    assert mapper({"pixels": pixels})["image"][0].numpy().tolist() == pixels[..., 2].tolist()


def test_a_debian_package_that_is_there_is_unpacked(tmp_path):
    root = tmp_path / "package"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        "Package: dataset-fashion-mnist\nVersion: 1\nArchitecture: all\n"
        "Maintainer: nobody <nobody@example.org>\nDescription: drawn\n"
    )
    write_fashion_mnist(root / "usr" / "share" / "fashion-mnist", np.random.default_rng(0))
    for file in (root / "usr" / "share" / "fashion-mnist").glob("*ubyte"):
        file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
    deb = tmp_path / "drawn.deb"
    try:
        subprocess.run(["dpkg-deb", "--build", str(root), str(deb)], check=True)
    except OSError:
        pytest.skip("no dpkg-deb")
    with pytest.raises(DataError, match="holds 12 images to train, not 60000"):
        prepare_fashion_mnist(tmp_path / "out", deb=str(deb))
    names = sorted(file.name for file in (tmp_path / "out" / "fashion_mnist").iterdir())
    assert names == sorted(FILES)
    with pytest.raises(DataError, match="cannot be unpacked"):
        prepare_fashion_mnist(tmp_path / "again", deb=str(tmp_path / "none.deb"))
