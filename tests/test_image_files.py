"""The readers of images and labels, on files of every kind that people have."""

import io

import numpy as np
import pytest
from PIL import Image

from divdr.errors import DataError
from divdr.image_files import check_label_map, image_files, image_size, read_image, read_labels

RAMP = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20  # 0 to 220


def saved(folder, name, picture, **options):
    path = folder / name
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(
        path, **options
    )
    return path


def palette(indices, colours):
    picture = Image.new("P", indices.shape[::-1])
    picture.putdata(indices.ravel().tolist())
    picture.putpalette(colours)
    return picture


@pytest.mark.parametrize(
    ("name", "picture", "grey"),
    [
        ("8.png", RAMP, RAMP),
        ("16.png", RAMP.astype(np.uint16) * 257, RAMP),
        ("16.tif", RAMP.astype(np.uint16) * 257, RAMP),
        ("32.tif", RAMP.astype(np.int32) * 257, RAMP),
        ("float.tif", (RAMP / 255).astype(np.float32), RAMP),
        ("1.png", RAMP > 100, (RAMP > 100) * 255),
        ("la.png", Image.merge("LA", [Image.fromarray(RAMP), Image.fromarray(255 - RAMP)]), RAMP),
        ("rgba.png", Image.fromarray(np.dstack([RAMP] * 3 + [255 - RAMP])), RAMP),
        ("p.png", palette(RAMP // 20, [v for g in range(12) for v in [20 * g] * 3]), RAMP),
        ("cmyk.tif", Image.fromarray(np.dstack([0 * RAMP] * 3 + [255 - RAMP]), "CMYK"), RAMP),
    ],
)
def test_grey_levels_are_the_same_in_every_kind_of_file(tmp_path, name, picture, grey):
    path = saved(tmp_path, name, picture)
    for image_format, channels in (("RGB", 3), ("BGR", 3), ("L", 1)):
        found = read_image(path, image_format)
        assert found.dtype == np.uint8
        assert found.shape == (3, 4, channels)
        assert np.abs(found.astype(int) - np.asarray(grey, int)[..., None]).max() <= 1


def test_colours_and_their_order(tmp_path):
    path = saved(tmp_path, "a.png", np.full((2, 2, 3), (200, 100, 50), np.uint8))
    assert read_image(path, "RGB")[0, 0].tolist() == [200, 100, 50]
    assert read_image(path, "BGR")[0, 0].tolist() == [50, 100, 200]
    luma = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    assert read_image(path, "L")[0, 0, 0] == round(luma)
    assert read_image(path, "YUV-BT.601")[0, 0, 0] == pytest.approx(luma / 255, abs=1e-5)


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_images_and_labels_are_turned_by_their_orientation(tmp_path, orientation, turns):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, "a.png", RAMP, exif=exif)
    turned = np.rot90(RAMP, turns)
    assert read_image(path, "L")[:, :, 0].tolist() == turned.tolist()
    assert read_labels(path).tolist() == turned.tolist()
    assert image_size(path)[:2] == turned.shape


@pytest.mark.parametrize(
    ("name", "picture", "values"),
    [
        ("8.png", RAMP, RAMP),
        ("16.png", RAMP.astype(np.uint16), RAMP),
        ("wide.png", RAMP.astype(np.uint16) + 300, RAMP.astype(int) + 300),
        ("1.png", RAMP > 100, RAMP > 100),
        ("minus.tif", RAMP.astype(np.int32) - 1, RAMP.astype(int) - 1),
        ("float.tif", RAMP.astype(np.float32), RAMP),
        # Index 1 is drawn dark red, grey level 38: the index counts.
        ("p.png", palette(RAMP // 220, [0, 0, 0, 128, 0, 0]), RAMP // 220),
    ],
)
def test_labels_are_numbers_of_any_depth(tmp_path, name, picture, values):
    found = read_labels(saved(tmp_path, name, picture))
    assert found.tolist() == np.asarray(values, int).tolist()
    fits = np.min(np.asarray(values, int)) >= 0 and np.max(values) <= 255
    assert found.dtype == (np.uint8 if fits else np.int32)


@pytest.mark.parametrize(
    ("name", "picture", "reported"),
    [
        ("rgb.png", np.zeros((2, 2, 3), np.uint8), r"in colours \(mode RGB\)"),
        ("half.tif", np.full((2, 2), 0.5, np.float32), "holds fractions"),
        ("nan.tif", np.full((2, 2), np.nan, np.float32), "holds fractions"),
    ],
)
def test_labels_that_are_no_numbers_are_refused(tmp_path, name, picture, reported):
    path = saved(tmp_path, name, picture)
    with pytest.raises(DataError, match=rf"file {path} cannot be used: it .*{reported}|{reported}"):
        read_labels(path)


@pytest.mark.parametrize(
    ("picture", "reported"),
    [
        (np.full((2, 2), 70000, np.int32), "levels are from 70000 to 70000"),
        (np.full((2, 2), -1, np.int32), "levels are from -1 to -1"),
        (np.full((2, 2), 255.0, np.float32), "floats from 255 to 255"),
        (np.full((2, 2), np.nan, np.float32), "floats from nan to nan"),
    ],
)
def test_levels_of_which_nobody_knows_what_is_white_are_refused(tmp_path, picture, reported):
    path = saved(tmp_path, "a.tif", picture)
    with pytest.raises(DataError, match=reported) as caught:
        read_image(path, "RGB")
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(whole, "PNG")
    cases = {"empty": b"", "text": b"no image", "cut": whole.getvalue()[:-2000]}
    for name, content in cases.items():
        path = tmp_path / f"{name}.png"
        path.write_bytes(content)
        for read in (lambda p: read_image(p, "RGB"), read_labels):
            with pytest.raises(DataError) as caught:
                read(path)
            assert f"file {path} cannot be read as an image" in str(caught.value)
    for path, reported in ((tmp_path / "none.png", "does not exist"), (tmp_path, "cannot be read")):
        with pytest.raises(DataError, match=reported):
            read_image(path, "RGB")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    path = saved(tmp_path, "large.png", noise)
    with pytest.raises(DataError, match=rf"file {path} .* more than 0 million pixels; cut it"):
        image_size(path)


def test_one_pixel(tmp_path):
    path = saved(tmp_path, "a.png", np.full((1, 1, 3), 7, np.uint8))
    assert read_image(path, "RGB").tolist() == [[[7, 7, 7]]]
    assert image_size(path) == (1, 1, "RGB")


def test_labels_must_be_classes_as_large_as_the_image():
    labels = np.array([[0, 1], [255, 1]])
    check_label_map(labels, "a.png", classes=2, ignore=255, size=(2, 2))
    for wrong, reported in (([[0, 2]], "holds 2; classes are 0 to 1, and 255"), ([[-1, 0]], "-1")):
        with pytest.raises(DataError, match=reported):
            check_label_map(np.array(wrong), "a.png", classes=2, ignore=255)
    check_label_map(np.array([[-1, 0]]), "a.png", classes=2, ignore=-1)
    with pytest.raises(DataError, match=r"label file a\.png is 2×2 pixels, its image 2×3"):
        check_label_map(labels, "a.png", classes=2, ignore=255, size=(2, 3))


def test_image_files_of_any_ending_and_case(tmp_path):
    for name in ("b.JPG", "a.png", "c.Tiff", ".hidden.png", "notes.txt", "d.jpeg"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert [f.name for f in image_files(tmp_path)] == ["a.png", "b.JPG", "c.Tiff", "d.jpeg"]
