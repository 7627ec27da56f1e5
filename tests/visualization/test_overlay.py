import numpy as np
import pytest

from divdr.visualization import colour_labels, default_palette, overlay, side_by_side_figure

PALETTE = np.array([[255, 0, 0], [0, 200, 0]], dtype=np.uint8)


def test_colours_and_void():
    labels = np.array([[0, 1], [255, -1]])
    expected = [[[255, 0, 0], [0, 200, 0]], [[0, 0, 0], [0, 0, 0]]]
    coloured = colour_labels(labels, PALETTE)
    assert coloured.dtype == np.uint8
    assert coloured.tolist() == expected
    assert colour_labels(labels.astype(np.uint8), PALETTE).tolist() == expected


def test_overlay_mixes_and_leaves_void_alone():
    # 0.25 · (255, 0, 0) + 0.75 · (100, 100, 100) = (138.75, 75, 75)
    image = np.full((1, 2, 3), 100, dtype=np.uint8)
    mixed = overlay(image, np.array([[0, 255]]), PALETTE, alpha=0.25)
    assert mixed.tolist() == [[[139, 75, 75], [100, 100, 100]]]


def test_overlay_refuses_other_sizes():
    with pytest.raises(ValueError, match="differ in size"):
        overlay(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 3), int), PALETTE)
    with pytest.raises(ValueError, match="alpha"):
        overlay(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), int), PALETTE, alpha=2)
    with pytest.raises(ValueError, match="palette"):
        colour_labels(np.zeros((2, 2), int), np.zeros(3))


def test_palette_has_different_colours():
    assert len(np.unique(default_palette(40), axis=0)) == 40
    assert default_palette(0).shape == (0, 3)


def test_columns_and_legend():
    image = np.zeros((4, 8, 3), dtype=np.uint8)
    zeros, ones = np.zeros((4, 8), dtype=int), np.ones((4, 8), dtype=int)
    figure = side_by_side_figure(
        [image, image],
        [{"A": zeros, "B": zeros}, {"B": ones}],
        [zeros, None],
        PALETTE,
        ["x", "y"],
        ["road"],
    )
    heads = [[text.get_text() for text in axis.texts] for axis in figure.axes]
    assert heads == [["input"], ["A"], ["B"], ["truth"], [], [], [], []]
    assert [len(axis.images) for axis in figure.axes] == [1, 1, 1, 1, 1, 0, 1, 0]
    assert (figure.axes[6].images[0].get_array() == PALETTE[1]).all()
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["road", "class 1"]
    with pytest.raises(ValueError, match="at least one"):
        side_by_side_figure([], [], [], PALETTE, [])
