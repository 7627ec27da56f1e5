"""On which images a network gains, against values worked out by hand."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from divdr.data import load_scenes
from divdr.errors import DataError
from divdr.studies.by_image import gains_by_need, image_iou
from divdr.visualization import Gain, Need, need_figure


def test_iou_of_an_image_is_the_mean_over_the_classes_that_it_shows():
    truth = np.array([[0, 0, 1, 255], [0, 0, 1, 255]])
    predicted = np.array([[0, 0, 1, 7], [0, 2, 0, 7]])
    # Class 0: 3 of 5 pixels, class 1: 1 of 2; 2 is predicted alone, 255 is left out.
    assert image_iou(predicted, truth) == pytest.approx((3 / 5 + 1 / 2) / 2)
    assert np.isnan(image_iou(predicted, np.full((2, 4), 255)))


def _garments(root, objects):
    """Images of a set of garments that show so many objects; only their truth is there."""
    folder = root / "fashion_scenes"
    names = [f"{number:06d}" for number in range(len(objects))]
    for top in ("images", "labels"):
        (folder / top / "val").mkdir(parents=True)
    for name in names:
        Image.new("L", (4, 4)).save(folder / "labels" / "val" / f"{name}.png")
    needs = {name: {"objects": n} for name, n in zip(names, objects, strict=True)}
    (folder / "needs.json").write_text(json.dumps({"train": {}, "val": needs}))
    return [str(folder / "images" / "val" / f"{name}.png") for name in names]


def _run(folder, ious):
    folder.mkdir()
    (folder / "image_ious.json").write_text(json.dumps(ious))
    return folder


def test_gains_are_of_images_with_few_some_and_many_objects(tmp_path):
    objects = [9, 1, 2, 5, 2, 7, 30]
    files = _garments(tmp_path, objects)
    rng = np.random.default_rng(0)
    scores = rng.random((2, 2, 7))  # pair, side, image
    pairs = [
        tuple(
            _run(tmp_path / f"{p}{s}", dict(zip(files, scores[p, s].tolist(), strict=True)))
            for s in (0, 1)
        )
        for p in (0, 1)
    ]
    gains = gains_by_need(pairs)
    # By rank: 1, 2, 2 | 5, 7 | 9, 30; equal numbers of objects stay together.
    parts = [[1, 2, 4], [3, 5], [0, 6]]
    assert [(g.fewest, g.most, g.images) for g in gains] == [(1, 2, 3), (5, 7, 2), (9, 30, 2)]
    for gain, part in zip(gains, parts, strict=True):
        own = 100 * (scores[:, 1] - scores[:, 0]).mean(axis=0)[part]
        half = stats.t.ppf(0.975, len(own) - 1) * own.std(ddof=1) / len(own) ** 0.5
        assert gain.mean == pytest.approx(own.mean())
        assert gain.low == pytest.approx(own.mean() - half)
        assert gain.high == pytest.approx(own.mean() + half)
    with pytest.raises(ValueError, match="no pair"):
        gains_by_need([])


def test_an_image_without_truth_takes_no_part(tmp_path):
    files = _garments(tmp_path, [1, 2, 3, 4])
    a = _run(tmp_path / "a", dict.fromkeys(files, 0.5))
    b = _run(tmp_path / "b", {**dict.fromkeys(files, 0.75), files[0]: 0.9})
    (tmp_path / "a" / "image_ious.json").write_text(
        json.dumps({**dict.fromkeys(files, 0.5), files[0]: float("nan")})
    )
    gains = gains_by_need([(a, b)])
    assert [g.images for g in gains] == [1, 1, 1]
    assert [g.mean for g in gains] == pytest.approx([25.0] * 3)


def test_truth_lies_where_the_data_sets_put_it(tmp_path):
    files = _garments(tmp_path, [3, 8])
    first, scene = load_scenes(files)
    assert first.objects == 3
    assert scene.objects == 8
    assert scene.labels == tmp_path / "fashion_scenes" / "labels" / "val" / "000001.png"
    with pytest.raises(DataError, match="does not tell of 000002"):
        load_scenes([files[0].replace("000000", "000002")])
    with pytest.raises(DataError, match="does not tell of beside"):
        load_scenes([tmp_path / "fashion_scenes" / "beside.png"])
    with pytest.raises(DataError, match="no image of drawn scenes"):
        load_scenes([tmp_path / "photo.jpg"])


def test_picture_shows_costs_and_gains():
    needs = {"DR": Need([1, 2, 3], [0.1, 0.2, 0.3]), "route": Need([1, 2, 3], [0.1] * 3)}
    gains = {"DR − narrow": [Gain(1, 2, 2, 1.0, 0.5, 1.5), Gain(3, 3, 1, -1.0, -2.0, 0.0)]}
    left, right = need_figure(needs, gains).axes
    texts = [text.get_text() for text in left.get_legend().get_texts()]
    assert texts == ["DR (ρ = 1.00)", "route (one cost)"]
    assert left.lines[0].get_ydata() == pytest.approx([0.1, 0.2, 0.3])
    ((marks, _, (bars,)),) = right.containers
    assert marks.get_ydata() == pytest.approx([1.0, -1.0])
    assert [b[:, 1].tolist() for b in bars.get_segments()] == [[0.5, 1.5], [-2.0, 0.0]]
    names = [label.get_text() for label in right.get_xticklabels()]
    assert names == ["1 to 2\n(n = 2)", "3\n(n = 1)"]
    with pytest.raises(ValueError, match="nothing"):
        need_figure({}, gains)
