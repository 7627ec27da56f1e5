import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_runs import write_run

from divdr.routing.space import RoutingSpace
from divdr.visualization import (
    RunData,
    SweepPanel,
    joint_embedding_figure,
    pareto_front,
    sweep_figure,
    tradeoff_figure,
)


def test_pareto_front_by_hand():
    # (2, 4) is beaten by (2, 5), (3, 5) by it too; of the two equal ones both stay.
    points = [(3, 5), (1, 2), (2, 5), (2, 4), (9, 9), (9, 9)]
    assert pareto_front(*zip(*points, strict=True)) == [1, 2, 4, 5]
    assert pareto_front([], []) == []
    with pytest.raises(ValueError, match="do not fit"):
        pareto_front([1.0], [])


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_pareto_front_agrees_with_the_definition(points):
    def beaten(a):
        return any(b[0] <= a[0] and b[1] >= a[1] and b != a for b in points)

    wanted = {i for i, point in enumerate(points) if not beaten(point)}
    assert set(pareto_front([p[0] for p in points], [p[1] for p in points])) == wanted


def test_tradeoff_draws_the_front_through_means():
    groups = {"a": [(1, 10), (3, 14)], "b": [(4, 11)], "c": [(5, 20)], "none": []}
    (axis,) = tradeoff_figure({**groups, "d": [(9, 21)]}, "GFLOPs", "mIoU").axes
    front = next(line for line in axis.lines if line.get_gid() == "front")
    # Means (2, 12), (4, 11), (5, 20), (9, 21): b costs more than a and is worth less.
    assert front.get_xydata().tolist() == [[2, 12], [5, 20], [9, 21]]
    (axis,) = tradeoff_figure(groups, "GFLOPs", "mIoU").axes
    assert not [line for line in axis.lines if line.get_gid() == "front"]  # through two: no line
    with pytest.raises(ValueError, match="no run"):
        tradeoff_figure({"none": []}, "GFLOPs", "mIoU")


def test_no_two_of_many_rows_look_alike():
    groups = {f"row {number}": [(number, number)] for number in range(30)}
    (axis,) = tradeoff_figure(groups, "GFLOPs", "mIoU").axes
    looks = {
        (line.get_marker(), line.get_color())
        for line in axis.lines
        if str(line.get_label()).startswith("row")
    }
    assert len(looks) == 30


def test_sweep_draws_mean_and_deviation_at_each_setting():
    panel = SweepPanel("mIoU", [[10.0, 14.0], [20.0]], reference=[11.0, 13.0])
    figure = sweep_figure([panel], [0.1, 1.0], "λ2", log=True, reference="DR")
    axis = figure.axes[0]
    ((line, _, (bars,)),) = axis.containers
    assert line.get_xydata().tolist() == [[0.1, 12.0], [1.0, 20.0]]
    assert line.get_linestyle() == "None"  # through two: no line
    half = 8**0.5  # deviations ±2, over n − 1 = 1
    np.testing.assert_allclose(bars.get_segments()[0][:, 1], [12 - half, 12 + half])
    level = next(ln for ln in axis.lines if ln.get_gid() == "reference")
    assert set(level.get_ydata()) == {12.0}
    assert axis.get_xscale() == "log"


def test_a_sweeps_line_needs_three_settings():
    figure = sweep_figure([SweepPanel("m", [[1.0], [2.0], [4.0]])], [1, 2, 3], "α")
    ((line, _, _),) = figure.axes[0].containers
    assert line.get_linestyle() == "-"


def test_sweep_sets_words_side_by_side_and_keeps_zero_on_a_log_axis():
    words = sweep_figure([SweepPanel("mIoU", [[1.0], [2.0]])], ["latest", "exact"], "bank").axes[0]
    assert [label.get_text() for label in words.get_xticklabels()] == ["latest", "exact"]
    truth = sweep_figure([SweepPanel("mIoU", [[1.0], [2.0]])], [False, True], "warm").axes[0]
    assert [label.get_text() for label in truth.get_xticklabels()] == ["False", "True"]
    zero = sweep_figure([SweepPanel("m", [[1.0], [2.0], []])], [0.0, 0.5, 4.0], "α", log=True)
    zero.draw_without_rendering()
    assert zero.axes[0].get_xscale() == "symlog"


@pytest.mark.parametrize(
    ("panels", "settings"),
    [([], [1]), ([SweepPanel("m", [])], []), ([SweepPanel("m", [[1.0]])], [1, 2])],
)
def test_sweep_of_nothing_or_of_other_lengths_is_refused(panels, settings):
    with pytest.raises(ValueError, match="setting"):
        sweep_figure(panels, settings, "α")


def test_runs_share_one_plane(tmp_path):
    space = RoutingSpace((2, 3, 3))
    runs = {}
    for seed, name in enumerate(("DR", "DivDR")):
        write_run(tmp_path / name, space=space, images=12, seed=seed)
        runs[name] = RunData.load(tmp_path / name).routes_of("toy_val")
    figure = joint_embedding_figure(runs)
    together, *alone = figure.axes
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["all runs", "DR", "DivDR"]
    placed = [np.concatenate([c.get_offsets() for c in axis.collections]) for axis in figure.axes]
    for points in placed:
        np.testing.assert_allclose(sorted(points.tolist()), sorted(placed[0].tolist()))
    assert [t.get_text() for t in together.get_legend().get_texts()] == ["DR (12)", "DivDR (12)"]
    # Twelve images in turn: four for each of three experts.
    experts = [t.get_text() for t in alone[0].get_legend().get_texts()]
    assert experts == ["expert 0 (4)", "expert 1 (4)", "expert 2 (4)"]
    write_run(tmp_path / "other", space=RoutingSpace((2, 3)), images=12)
    runs["other"] = RunData.load(tmp_path / "other").routes_of("toy_val")
    with pytest.raises(ValueError, match="different lengths"):
        joint_embedding_figure(runs)
