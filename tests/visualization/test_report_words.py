import base64
import io
import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from divdr.visualization.parts import (
    Picture,
    change,
    count,
    draw,
    figures,
    fixed,
    listing,
    runs_words,
    signed,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1.2345, "1.23"),
        (-0.012345, "−0.0123"),
        (123456.0, "123456"),
        (1.5e-7, "1.50e−07"),
        (2e9, "2.00e+09"),
        (math.nan, "–"),
        (None, "–"),
    ],
)
def test_figures(value, text):
    assert figures(value) == text


def test_fixed_and_signed():
    assert fixed(-0.001, 2) == "0.00"
    assert fixed(math.inf, 2) == "–"
    assert signed(0.004, 2) == "±0.00"
    assert signed(-0.004, 2) == "±0.00"
    assert signed(1.25, 1) == "+1.2"
    assert signed(-3, 1) == "−3.0"


def test_what_runs_is_said_of_what_could():
    assert runs_words(0.0731e9, 0.1049e9) == "runs 0.073 of 0.105 GFLOPs"
    assert runs_words(30.21e9, 44.4e9) == "runs 30.2 of 44.4 GFLOPs"
    assert runs_words(120e9, 344.4e9) == "runs 120 of 344 GFLOPs"
    assert runs_words(0.0731e9) == "runs 0.0731 GFLOPs"


def test_change_says_what_rounded_numbers_show():
    assert change("inter", 1.0, 2.0) == "inter rose from 1.00 to 2.00"
    assert change("inter", 2.0, -1.0) == "inter fell from 2.00 to −1.00"
    assert change("inter", 1.0001, 1.0002) == "inter stayed at 1.00"
    assert change("inter", 1.0, math.nan) == "inter went from 1.00 to –"


def test_count_and_listing():
    assert (count(1, "image"), count(0, "image")) == ("1 image", "0 images")
    assert [listing("abc"[:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]


def picture(noisy):
    figure = Figure(figsize=(3, 3))
    axis = figure.subplots()
    if noisy:
        axis.imshow(np.random.default_rng(0).integers(0, 255, (400, 400, 3), dtype=np.uint8))
    return Picture(figure, "words")


def width(source):
    data = base64.b64decode(source.removeprefix("data:image/png;base64,"))
    return Image.open(io.BytesIO(data)).width


def test_only_the_largest_pictures_become_coarser():
    free = [picture(True), picture(False)]
    draw(free, 10**9)
    full = [width(p.source) for p in free]
    tight = [picture(True), picture(False)]
    limit = sum(len(p.source) for p in free) * 2 // 3
    draw(tight, limit)
    assert sum(len(p.source) for p in tight) <= limit + 100
    assert width(tight[0].source) < full[0]
    assert width(tight[1].source) == full[1]
