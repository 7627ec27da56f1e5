"""The drawn subsets: rules, repeatability, and names in Detectron2."""

import importlib.util

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from drawn_files import content, read
from hypothesis import given, settings
from hypothesis import strategies as st

from divdr.data import check_datasets, register_subsets
from divdr.data.drawn_sets import load_subsets, subset_names
from divdr.errors import ConfigError, DataError
from drawn.subsets import make_subsets
from drawn.subsets.cue import tint
from drawn.subsets.digits import draw_digits, load_digit_pictures
from drawn.subsets.look import Look
from drawn.subsets.shapes import draw_shapes


def make(root, **changes):
    make_subsets(root, **{"train": 6, "val": 3, "seed": 1, "workers": 1, **changes})
    return root / "subsets"


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), dial=st.floats(0, 0.99), subsets=st.integers(2, 4))
def test_the_true_tint_tells_the_subset(seed, dial, subsets):
    rng = np.random.default_rng(seed)
    middles = [tint(k, subsets, 0.0, rng) for k in range(subsets)]
    for subset in range(subsets):
        seen = tint(subset, subsets, dial, rng)
        assert seen.sum() == pytest.approx(0, abs=1e-9)  # no light, colour alone
        nearest = np.argmax([seen @ middle for middle in middles])
        assert nearest == subset


@pytest.mark.parametrize("subset", [0, 1, 2])
def test_the_same_colour_means_another_class(subset):
    # Paint has the hues 60°, 180°, 300°: without blue, without red, without green.
    rng = np.random.default_rng(3)
    for _ in range(5):
        picture, labels = draw_shapes(64, subset, Look(3, 0.0), rng)
        weakest = picture.astype(int).argmin(2)
        for colour, missing in enumerate((2, 0, 1)):
            own = labels == 1 + (colour + subset) % 3
            if own.any():
                assert (weakest[own] == missing).mean() > 0.95
        assert 0.15 <= (labels > 0).mean() < 0.45


def test_shapes_of_the_last_subset_are_larger():
    largest = []
    for subset in range(3):
        rng = np.random.default_rng(0)
        areas = []
        for _ in range(10):
            labels = draw_shapes(64, subset, Look(3, 0.0), rng)[1]
            areas += [
                cv2.connectedComponentsWithStats((labels == c).astype("uint8"))[2][1:, 4]
                for c in (1, 2, 3)
            ]
        largest.append(np.median(np.concatenate(areas)))
    assert largest[0] < largest[1] < largest[2]


@pytest.mark.parametrize(("subset", "rule"), [(1, "size"), (3, "ink")])
def test_digits_follow_the_rule(subset, rule):
    right, count = 0, 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        picture, labels = draw_digits(64, subset, Look(4, 0.0), rng)
        for value in (1, 2):
            number, parts, stats, _ = cv2.connectedComponentsWithStats(
                (labels == value).astype(np.uint8)
            )
            for part in range(1, number):
                height = stats[part, cv2.CC_STAT_HEIGHT]
                inside = stats[part, 0] > 0 and stats[part, 1] > 0
                if height < 9 or not inside:  # a fragment
                    continue
                bright = picture[parts == part].mean() > 128
                right += (value == 2) == (height > 17 if rule == "size" else bright)
                count += 1
    assert count > 20
    assert right / count > 0.85


def test_no_digit_of_validation_is_trained_on():
    held, others = load_digit_pictures(True)[0], load_digit_pictures(False)[0]
    assert len(held) + len(others) == 1797
    assert len(held) == 450
    known = {d.tobytes() for d in others}
    assert not any(d.tobytes() in known for d in held)


@pytest.mark.parametrize("kind", ["shapes", "digits"])
def test_same_settings_same_bytes(tmp_path, kind):
    one = content(make(tmp_path / "one", kind=kind))
    assert len(one) == 2 * 9 + 2
    assert content(make(tmp_path / "two", kind=kind, workers=2)) == one
    make(tmp_path / "two", kind=kind, seed=2)
    other = content(tmp_path / "two" / "subsets")
    assert other["images/train/train_00000.png"] != one["images/train/train_00000.png"]


def test_what_is_missing_is_made_again(tmp_path):
    folder = make(tmp_path)
    before = content(folder)
    (folder / "labels/val/val_00001.png").unlink()
    make(tmp_path)
    assert content(folder) == before


def test_subsets_take_turns(tmp_path):
    folder = make(tmp_path, subsets=2)
    subsets = load_subsets(tmp_path)
    assert [subsets[f"train_0000{i}"] for i in range(6)] == [0, 1, 0, 1, 0, 1]
    (folder / "subsets.json").write_text("[")
    with pytest.raises(DataError, match="damaged"):
        load_subsets(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dial": 1.5}, "between 0 and 1"),
        ({"subsets": 5}, "2 to 4"),
        ({"size": 50}, "multiple of 32"),
        ({"kind": "faces"}, "shapes, digits"),
        ({"train": 0}, "at least 1"),
    ],
)
def test_settings_that_cannot_be(tmp_path, change, words):
    with pytest.raises(ConfigError, match=words):
        make(tmp_path, **change)


def test_names(tmp_path, names_under):
    make(tmp_path)
    with names_under(tmp_path):
        register_subsets(tmp_path)
        whole = DatasetCatalog.get("subsets_train")
        assert [item["subset"] for item in whole] == [0, 1, 2, 0, 1, 2]
        alone = DatasetCatalog.get("subsets_val_1")
        assert [item["file_name"][-13:] for item in alone] == ["val_00001.png"]
        assert read(alone[0]["sem_seg_file_name"]).max() < len(
            MetadataCatalog.get("subsets_val_1").stuff_classes
        )
        check_datasets(subset_names("train"))


def test_missing_data_is_reported(tmp_path, names_under):
    with names_under(tmp_path):
        register_subsets(tmp_path)
        with pytest.raises(DataError, match=r"expects its images in .*subsets.*datasets/README.md"):
            check_datasets(["subsets_train"])
        with pytest.raises(DataError, match=r"run datasets/make_subsets.py first"):
            DatasetCatalog.get("subsets_train")


def test_command_line(tmp_path, repository, capsys):
    spec = importlib.util.spec_from_file_location(
        "make_subsets", repository / "datasets" / "make_subsets.py"
    )
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    words = ["--output", str(tmp_path), "--train", "3", "--val", "3", "--workers", "1"]
    assert tool.main([*words, "--dial", "0.2"]) == 0
    assert len(load_subsets(tmp_path)) == 6
    with pytest.raises(SystemExit) as stopped:
        tool.main([*words, "--dial", "2"])
    assert stopped.value.code == 2
    assert "\nerror: dial must lie" in capsys.readouterr().err
