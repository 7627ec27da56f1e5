"""The sheet: for each expert an image, its route and cost, prediction and truth."""

import numpy as np
import pytest
from PIL import Image
from synthetic_runs import scene, write_run

from divdr.routing.space import RoutingSpace
from divdr.visualization import ClassExample, Example, RunData, write_sheet
from divdr.visualization.sheet import sheet_figure

SPACE = RoutingSpace.build(3, 2)
NAMES = ["sky", "road", "brick", "tree", "car", "white"]


@pytest.fixture
def run(tmp_path):
    write_run(tmp_path / "with", space=SPACE, picture_folder=tmp_path / "images")
    file = tmp_path / "with" / "inference" / "activations_toy_val.npz"
    with np.load(file) as stored:
        arrays = {name: stored[name] for name in stored.files}
    np.savez(file, **arrays, all_open_cost=2 * arrays["real_cost"] + 1e9)
    return RunData.load(tmp_path / "with")


def examples(routes):
    found = []
    for number, (expert, file) in enumerate(zip(routes.expert, routes.file_names, strict=True)):
        image, labels = scene(int(expert), number)
        found.append(Example(str(number), image, labels, {"with": labels}, file_name=file))
    return found


def test_a_row_an_expert_with_its_image_route_cost_prediction_and_truth(run):
    routes = run.routes_of("toy_val")
    figure = sheet_figure("with", routes, examples(routes), None, NAMES)
    *rows, _, _ = figure.axes  # legends below
    assert len(rows) == 3 * 4
    for expert in range(3):
        image, route, prediction, truth = rows[4 * expert : 4 * expert + 4]
        assert image.get_title(loc="left") == f"expert {expert}: 8 images like this"
        words = route.get_title(loc="left").split()
        assert words[0::2] == ["runs", "of"] + ["GFLOPs"] * (len(words) == 5)
        real, whole = float(words[1]), float(words[3])
        assert whole == pytest.approx(2 * real + 1, rel=0.05)
        whole_bar, bar = route.patches[-2:]
        assert bar.get_width() / whole_bar.get_width() == pytest.approx(real / whole, rel=0.05)
        assert [len(axis.images) for axis in (image, prediction, truth)] == [1, 1, 1]
    heads = [text.get_text() for axis in rows[:4] for text in axis.texts if text.get_text()]
    assert heads == ["image", "its route through the network", "prediction of with", "truth"]
    classes = [text.get_text() for text in figure.axes[-1].get_legend().get_texts()]
    assert {"sky", "road"} <= {*classes} <= {*NAMES}


def test_a_pictures_place_stays_empty_where_it_is_not_there(run):
    routes = run.routes_of("toy_val")
    figure = sheet_figure("with", routes, [], None, NAMES)
    assert [len(axis.images) for axis in figure.axes[:4]] == [1, 0, 0, 0]
    assert figure.axes[-1].get_legend() is None


def test_files_and_what_is_refused(run, tmp_path):
    write_run(tmp_path / "gone", space=SPACE)  # its images are not there
    image, labels = scene(0, 0)
    few = [Example(str(n), image, labels, {"with": labels}) for n in range(6)]
    told = [ClassExample(image, "sky", {"with": ("sky", 0.9)})]
    for name, runs, more in (
        ("whole", [run], few),
        ("gone", [run, RunData.load(tmp_path / "gone")], []),
        ("no_routes", [RunData("with")], few),
    ):
        path = tmp_path / f"{name}.png"
        write_sheet(path, runs, "toy_val", examples=more)
        with Image.open(path) as picture:
            assert picture.width == 1000
    for nothing in ([], told):
        with pytest.raises(ValueError, match="at least one example"):
            write_sheet(tmp_path / "no.png", [RunData("with")], "toy_val", examples=nothing)
