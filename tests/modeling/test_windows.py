"""Windows of maps of several strides against slices of zero-padded maps."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from divdr.modeling.segmentors.windows import Windows

STRIDES = {"fine": 4, "middle": 8, "coarse": 16}
RATIOS = {"fine": 4, "middle": 2, "coarse": 1}  # cells per cell of the coarsest map

sizes = st.tuples(st.integers(1, 33), st.integers(1, 33))
cells = st.integers(1, 4)
halos = st.integers(0, 2)


def pyramid(size, count=2):
    """Maps by name; the finest has this size, each next one is half as long, rounded up."""
    generator = torch.Generator().manual_seed(size[0] * 100 + size[1])
    return {
        name: torch.randn(count, 3, *(-(-n * ratio // 4) for n in size), generator=generator)
        for name, ratio in RATIOS.items()
    }


@settings(max_examples=40, deadline=None)
@given(sizes, cells, halos, st.data())
def test_a_window_is_a_slice_of_the_map_with_zeros_around(size, cells, halo, data):
    maps = pyramid(size)
    windows = Windows.over(maps, STRIDES, cells, halo)
    down, across = (math.ceil(math.ceil(n / 4) / cells) for n in size)
    assert (windows.down, windows.across, windows.each) == (down, across, down * across)
    rows = data.draw(st.lists(st.integers(0, 2 * down * across - 1), max_size=5))
    found = windows.cut(maps, torch.tensor(rows, dtype=torch.int64))
    assert set(found) == set(maps)
    for name, ratio in RATIOS.items():
        around = 50 * ratio  # further than any window reaches
        padded = F.pad(maps[name], (around,) * 4)
        length = (cells + 2 * halo) * ratio
        assert found[name].shape == (len(rows), 3, length, length)
        for row, part in zip(rows, found[name], strict=True):
            image, place = divmod(row, down * across)
            top, left = (around + (each * cells - halo) * ratio for each in divmod(place, across))
            assert part.equal(padded[image, :, top : top + length, left : left + length])


@settings(max_examples=40, deadline=None)
@given(sizes, cells, halos)
def test_windows_put_together_are_the_image(size, cells, halo):
    maps = pyramid(size)
    windows = Windows.over(maps, STRIDES, cells, halo)
    for name, ratio in RATIOS.items():
        height, width = maps[name].shape[-2:]
        parts = windows.of(maps[name], ratio)
        assert parts.shape == (2 * windows.each, 3, cells * ratio, cells * ratio)
        assert windows.together(parts, height, width).equal(maps[name])
        # What an expert says of windows with halo, and without it: the same pixels.
        every = torch.arange(2 * windows.each)
        assert windows.inner(windows.cut(maps, every)[name], ratio).equal(parts)
    assert windows.per_cell(maps, maps["fine"]) == 4
    assert windows.per_cell(maps, torch.randn(2, 1, size[0] * 4, size[1] * 4)) == 16


@settings(max_examples=40, deadline=None)
@given(sizes, cells)
def test_means_are_over_the_pixels_of_the_image(size, cells):
    maps = pyramid(size)
    windows = Windows.over(maps, STRIDES, cells, 1)
    found = windows.means(maps["fine"], 4)
    length = cells * 4
    expected = [
        image[:, top : top + length, left : left + length].mean((1, 2))
        for image in maps["fine"]
        for top in range(0, size[0], length)
        for left in range(0, size[1], length)
    ]
    torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize("halo", [0, 1])
def test_a_window_of_the_whole_image_is_the_image(halo):
    maps = pyramid((9, 13), count=3)
    windows = Windows.over(maps, STRIDES, 0, halo)
    assert windows.each == 1
    found = windows.cut(maps, torch.tensor([2, 0]))
    for name, values in maps.items():
        assert found[name].equal(values[[2, 0]])
        assert windows.inner(values, 4).equal(values)
        assert windows.of(values, 4).equal(values)
        assert windows.together(values, 1, 1).equal(values)
        torch.testing.assert_close(windows.means(values, 4), values.mean((2, 3)))
