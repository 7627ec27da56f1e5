"""Judgements of routing on cases made by hand: what is told, and what is left alone."""

import json

import numpy as np
import pytest

from divdr.errors import DataError
from divdr.experts.routing_warnings import (
    FILE,
    RoutingWarning,
    gates_alike,
    gates_open,
    off_target,
    one_expert_holds,
    one_route,
    pulled_together,
    routing_warnings,
    swapped_ids,
    unused_cells,
    warnings_text,
)

EXISTS = [True, True, False, True]


def test_one_expert_holds_after_three_clusterings():
    held = [[95, 3, 2], [92, 5, 3], [99, 1, 0]]
    assert "expert 0 holds 99%" in one_expert_holds(held).text
    assert one_expert_holds(held[:2]) is None
    assert one_expert_holds([[90, 5, 5], *held[1:]]) is None  # not more than 90 %
    assert one_expert_holds([[3, 95, 2], *held[1:]]) is None  # another one before
    assert one_expert_holds([[100], [100], [100]]) is None  # there is one alone
    assert one_expert_holds([[1, 99]], clusterings=1).kind == "one_expert"
    assert one_expert_holds([[]], clusterings=1) is None


def test_one_route():
    same = [[0.2, 0.0, 0.0, 0.9], [0.7, 0.0, 0.0, 0.1]]
    assert "all 2 images" in one_route(same, EXISTS).text
    assert one_route([[0.2, 0.0, 0.0, 0.9], [0.7, 0.1, 0.0, 0.1]], EXISTS) is None
    assert one_route(same[:1], EXISTS) is None
    assert one_route([[0.2, 0.3, 0.0, 0.9], [0.7, 0.1, 0.0, 0.1]], EXISTS) is None  # all open


def test_gates_open():
    everything = np.array([[0.2, 0.3, 0.0, 0.9], [0.7, 0.1, 0.0, 0.1]])
    assert gates_open(everything, EXISTS).kind == "gates_open"
    everything[1, 3] = 0
    assert gates_open(everything, EXISTS) is None
    assert gates_open(np.zeros((0, 4)), EXISTS) is None


def test_gates_alike():
    generator = np.random.default_rng(0)
    alike = 0.9 + generator.uniform(-0.02, 0.02, (50, 30))
    alike[:, ::3] = 0  # closed ones do not count
    assert "about 0.90" in gates_alike(alike).text
    assert gates_alike(generator.uniform(0, 1, (50, 30))) is None
    # A tenth that differs is a difference.
    alike[:, 1] = 0.5
    alike[:, 2] = 0.5
    assert gates_alike(alike) is None
    assert gates_alike(np.zeros((3, 3))) is None


def test_unused_cells():
    names = ["a", "b", "c"]
    text = unused_cells([7, 0, 5], names=names).text
    assert text.startswith("2 of 3 cells (a, c) have been opened by no training image for 5 ")
    assert unused_cells([4, 0, 1], names=names) is None
    assert "(a, b, c, …)" in unused_cells([9] * 5, names=[*names, "d", "e"]).text


@pytest.mark.parametrize(
    ("kind", "share", "target", "told"),
    [
        ("cost_target", 0.50, 0.40, "raise it"),
        ("cost_target", 0.30, 0.40, "lower it"),
        ("cost_target", 0.43, 0.40, ""),
        ("budget", 0.35, 0.10, "share of 0.35"),
        ("budget", 0.19, 0.10, ""),
        ("budget", 0.05, 0.10, ""),
    ],
)
def test_cost_beside_what_was_asked_for(kind, share, target, told):
    found = off_target(kind, share, target)
    assert (told in found.text and found.kind == kind) if told else found is None


def test_experts_pulled_together():
    falling = [1.0, 0.95, 0.9, 0.8, 0.7]
    assert "from 1 to 0.7" in pulled_together(falling, [True] * 5).text
    assert pulled_together(falling, [False, *[True] * 4]) is None
    assert pulled_together([1.0, 0.95, 0.96, 0.8, 0.7], [True] * 5) is None
    assert pulled_together([1.0, 0.97, 0.95, 0.9, 0.85], [True] * 5) is None  # a little
    assert pulled_together(falling[1:], [True] * 4) is None
    assert pulled_together([0.1, *falling], [False, *[True] * 5]) is not None


def test_experts_that_swap_their_numbers():
    before = [0] * 10 + [1] * 10
    assert "100% of the images" in swapped_ids(before, [1] * 10 + [0] * 10).text
    assert swapped_ids(before, before) is None
    assert swapped_ids(before, [0] * 8 + [1] * 12) is None  # moved, not swapped
    assert swapped_ids(before, [0, 1] * 10) is None  # other clusters altogether
    assert swapped_ids([], []) is None


def test_all_of_a_run_in_order(tmp_path):
    assert routing_warnings(tmp_path) == []
    (tmp_path / "inference").mkdir()
    told = [RoutingWarning("b", "B: b", 9), RoutingWarning("a", "A: a", 3)]
    seen = [RoutingWarning("c", "C: ü", data="val")]
    (tmp_path / FILE).write_text(warnings_text(told))
    (tmp_path / "inference" / f"val_{FILE}").write_text(warnings_text(seen))
    assert routing_warnings(tmp_path) == [told[1], told[0], *seen]
    (tmp_path / FILE).write_text(json.dumps([{"kind": "a"}]))
    with pytest.raises(DataError, match=r"routing_warnings\.json holds no warnings"):
        routing_warnings(tmp_path)
