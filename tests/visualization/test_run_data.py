import json
import shutil

import numpy as np
import pytest
from synthetic_runs import write_metrics, write_run

from divdr.errors import DataError
from divdr.routing.space import RoutingSpace
from divdr.visualization import RouteData, RunData

SPACE = RoutingSpace.build(4, 3)


def test_whole_folder(tmp_path):
    write_run(tmp_path / "a", space=SPACE, images=7)
    run = RunData.load(tmp_path / "a")
    assert run.name == "a"
    assert run.metrics is not None
    assert run.number("toy_val", "sem_seg", "mIoU") == 51.234
    routes = run.routes_of("toy_val")
    assert routes.space == SPACE
    assert routes.activations.shape == (7, SPACE.activation_size)
    assert routes.images_per_expert().tolist() == [3, 2, 2]
    assert routes.stems[:2] == ["city_000", "night_001"]
    assert run.routes_of("other") is None


def test_forwards_of_an_image_are_one_row_with_their_costs_together(tmp_path):
    # Image a took two forwards, image b three; the file holds a row for each.
    costs = np.array([1.0, 2.0, 10.0, 20.0, 30.0])
    rows = np.zeros((5, SPACE.activation_size))
    rows[:, 0] = range(5)
    names = np.array(["a", "a", "b", "b", "b"])
    arrays = {"file_names": names, "activations": rows, "all_open_cost": 4 * costs * 1e9}
    arrays |= {
        "expected_cost": costs,
        "real_cost": costs * 1e9,
        "expert": np.array([0, 1, 1, 0, 0]),
    }
    for more in ({"first": np.array([True, False, True, False, False])}, {}):  # older files
        routes = RouteData.load(change(tmp_path, **arrays, **more))
        shutil.rmtree(tmp_path / "a")
        assert routes.file_names == ["a", "b"]
        assert routes.activations[:, 0].tolist() == [0, 2]
        assert routes.expected_cost.tolist() == [3, 60]
        assert routes.expert.tolist() == [0, 1]
        assert routes.forwards.tolist() == [2, 3]
        assert routes.runs_of(1) == "runs 60 of 240 GFLOPs in 3 forwards"
    with pytest.raises(DataError, match="which of 5 rows begin an image"):
        RouteData.load(change(tmp_path, **arrays, first=np.zeros(5, bool)))


def test_images_without_names_are_each_one(tmp_path):
    routes = RouteData.load(change(tmp_path, file_names=np.array([""] * 5)))
    assert len(routes) == 5
    assert routes.runs_of(0) == f"runs {routes.real_cost[0] / 1e9:.2f} GFLOPs"


def test_missing_parts_are_none(tmp_path):
    write_metrics(tmp_path)
    run = RunData.load(tmp_path, "half")
    assert (run.name, run.results, run.routes) == ("half", None, None)
    assert run.number("toy_val", "sem_seg", "mIoU") is None


def test_numbers_that_are_none(tmp_path):
    (tmp_path / "inference").mkdir()
    stored = {"d": {"routing": {"a": [1], "b": float("nan"), "c": True, "e": 2}}, "f": 3}
    (tmp_path / "inference" / "results.json").write_text(json.dumps(stored))
    run = RunData.load(tmp_path)
    assert [run.number("d", "routing", key) for key in "abcez"] == [None, None, None, 2.0, None]
    assert run.number("f", "routing", "a") is None


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match="nothing to report"):
        RunData.load(tmp_path)
    with pytest.raises(DataError, match="not a folder"):
        RunData.load(tmp_path / "no")


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_damaged_results(tmp_path, text):
    (tmp_path / "inference").mkdir()
    (tmp_path / "inference" / "results.json").write_text(text)
    with pytest.raises(DataError, match=r"results\.json"):
        RunData.load(tmp_path)


def change(tmp_path, **arrays):
    write_run(tmp_path / "a", space=SPACE, images=5)
    path = tmp_path / "a" / "inference" / "activations_toy_val.npz"
    with np.load(path) as stored:
        kept = {name: stored[name] for name in stored.files}
    kept.update(arrays)
    np.savez(path, **{name: array for name, array in kept.items() if array is not None})
    return path


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"centres": None}, "no array 'centres'"),
        ({"reached": np.ones((5, 2), bool)}, "reached has shape"),
        ({"centres": np.ones((2, 3))}, "centres has shape"),
        ({"expert": np.array([0, 1, 2, 3, 0])}, "expert names"),
        ({"expert": np.array(["a"] * 5)}, "cannot be right"),
        ({"real_cost": np.full(5, np.nan)}, "real_cost holds"),
        ({"scales_per_layer": np.array([9])}, "cannot be right"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, arrays, words):
    with pytest.raises(DataError, match=words):
        RouteData.load(change(tmp_path, **arrays))


def test_no_experts(tmp_path):
    routes = RouteData.load(change(tmp_path, centres=np.zeros(0), expert=np.full(5, -1)))
    assert routes.centres.shape == (0, SPACE.activation_size)
    assert routes.images_per_expert().tolist() == []


def test_damaged_archive(tmp_path):
    path = change(tmp_path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="Cannot read"):
        RouteData.load(path)
