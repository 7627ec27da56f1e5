import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.text import Text
from PIL import Image

from divdr.errors import DataError
from divdr.visualization import montage_figure, nearest_to_centres, read_thumbnail


def naive(activations, centres, expert, count):
    result = []
    for k in range(len(centres)):
        members = []
        for i in range(len(activations)):
            if expert[i] == k:
                distance = sum(
                    (a - c) ** 2 for a, c in zip(activations[i], centres[k], strict=True)
                )
                members.append((distance, i))
        result.append([i for _, i in sorted(members)[:count]])
    return result


@settings(max_examples=60, deadline=None)
@given(n=st.integers(0, 20), k=st.integers(0, 4), count=st.integers(0, 5), seed=st.integers(0, 99))
def test_nearest_as_in_a_loop(n, k, count, seed):
    random = np.random.default_rng(seed)
    # Whole numbers, so that ties occur and both ways compute the same distances.
    activations = random.integers(0, 3, (n, 2)).astype(float)
    centres = random.integers(0, 3, (k, 2)).astype(float)
    expert = random.integers(-1, k, n) if k else np.full(n, -1)
    expected = naive(activations, centres, expert, count)
    assert nearest_to_centres(activations, centres, expert, count) == expected


def test_nearest_refuses_wrong_shapes():
    with pytest.raises(ValueError, match="do not fit"):
        nearest_to_centres(np.zeros((3, 2)), np.zeros((1, 3)), np.zeros(3), 1)
    with pytest.raises(ValueError, match="do not fit"):
        nearest_to_centres(np.zeros((3, 2)), np.zeros((1, 2)), np.zeros(2), 1)
    with pytest.raises(ValueError, match="negative"):
        nearest_to_centres(np.zeros((3, 2)), np.zeros((1, 2)), np.zeros(3), -1)


def test_montage_of_unequal_rows():
    pictures = [np.full((4, 8, 3), v, dtype=np.uint8) for v in (0, 80, 160)]
    figure = montage_figure([pictures, [], pictures[:1]], ["a", "b", "c"])
    shown = [len(axis.images) for axis in figure.axes]
    assert shown == [1, 1, 1, 0, 0, 0, 1, 0, 0]
    assert figure.axes[2].images[0].get_array().max() == 160
    with pytest.raises(ValueError, match="titles"):
        montage_figure([pictures], [])
    with pytest.raises(ValueError, match="at least one image"):
        montage_figure([[]], ["a"])


def test_a_tall_picture_stays_below_the_title_of_its_row():
    wide, tall = np.zeros((60, 80, 3), dtype=np.uint8), np.zeros((80, 60, 3), dtype=np.uint8)
    words = "a title as long as the row is wide or longer"
    figure = montage_figure([[wide, tall]], [words])
    figure.draw_without_rendering()
    first, second = figure.axes
    (title,) = first.findobj(lambda part: isinstance(part, Text) and part.get_text() == words)
    assert second.get_window_extent().y1 <= title.get_window_extent().y0


def test_thumbnail(tmp_path):
    Image.new("L", (600, 300), 7).save(tmp_path / "grey.png")
    small = read_thumbnail(tmp_path / "grey.png", longest=60)
    assert small.shape == (30, 60, 3)
    assert (small == 7).all()
    (tmp_path / "no.png").write_text("no image")
    for name in ("no.png", "missing.png"):
        with pytest.raises(DataError, match=name):
            read_thumbnail(tmp_path / name)
