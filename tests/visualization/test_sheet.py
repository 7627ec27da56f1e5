"""Several pictures on one sheet: their places and sizes, and what is left out."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from synthetic_runs import scene, write_run

from divdr.routing.space import RoutingSpace
from divdr.visualization import Example, RunData, write_sheet
from divdr.visualization.sheet import compose


def plain(colour, width, height):
    """A figure of one colour, inches, whose face survives being saved on white."""
    figure = Figure(figsize=(width, height))
    figure.figimage(np.full((800, 800, 3), colour, np.uint8))
    return figure


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def test_figures_stand_below_and_beside_each_other():
    sheet = compose(
        [
            [(plain(RED, 4, 1), 1.0)],
            [],
            [(plain(GREEN, 2, 2), 0.25), (plain(BLUE, 3, 1), 0.75)],
        ],
        width=400,
    )
    # 400 × 100; a gap of 10; 100 × 100 beside 300 × 100.
    assert sheet.size == (400, 210)
    pixels = np.asarray(sheet)
    for rows, columns, colour in (
        (slice(0, 100), slice(0, 400), RED),
        (slice(100, 110), slice(0, 400), (255, 255, 255)),
        (slice(110, 210), slice(0, 100), GREEN),
        (slice(110, 210), slice(100, 400), BLUE),
    ):
        assert (pixels[rows, columns] == colour).all()


def test_the_lower_one_of_a_row_stands_in_its_middle():
    sheet = compose([[(plain(RED, 1, 1), 0.5), (plain(BLUE, 2, 1), 0.5)]], width=200)
    assert sheet.size == (200, 100)
    column = np.asarray(sheet)[:, 150]
    assert (column[:25] == 255).all()
    assert (column[25:75] == BLUE).all()
    assert (column[75:] == 255).all()


@pytest.mark.parametrize("rows", [[], [[]]])
def test_a_sheet_of_nothing_is_refused(rows):
    with pytest.raises(ValueError, match="at least one figure"):
        compose(rows)


def test_a_runs_pictures_and_those_that_it_lacks(tmp_path):
    space = RoutingSpace.build(3, 2)
    write_run(tmp_path / "with", space=space, picture_folder=tmp_path / "images")
    write_run(tmp_path / "without", space=space)  # its images are gone
    runs = [RunData.load(tmp_path / name) for name in ("with", "without")]
    image, labels = scene(0, 0)
    examples = [Example(str(n), image, labels, {"with": labels}) for n in range(6)]
    sizes = {}
    for name, shown, more in (
        ("whole", runs[:1], examples),
        ("four", runs[:1], examples[:4]),
        ("no_examples", runs[:1], []),
        ("no_images", runs, []),
    ):
        path = tmp_path / f"{name}.png"
        write_sheet(path, shown, "toy_val", examples=more)
        with Image.open(path) as picture:
            sizes[name] = picture.size
    assert {width for width, _ in sizes.values()} == {1000}
    assert sizes["whole"] == sizes["four"]  # of six examples four are shown
    heights = [sizes[name][1] for name in ("whole", "no_examples", "no_images")]
    assert heights == sorted({*heights}, reverse=True)
