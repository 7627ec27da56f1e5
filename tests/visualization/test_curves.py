import numpy as np
import pytest

from divdr.errors import DataError
from divdr.visualization import (
    diversity_figure,
    gflops_figure,
    losses_figure,
    progress_figure,
    read_metrics,
)

LINES = """\
{"iteration": 19, "total_loss": 2.0, "lr": 0.1, "note": "text", "flag": true}
{"iteration": 39, "total_loss": 1.5}
{"iteration": 59, "total_loss": 1.4, "loss_a": 1.0}
{"iteration": 39, "total_loss": 1.2, "loss_a": 0.7}

[1, 2]
{"total_loss": 9.0}
{"iteration": NaN, "total_loss": 9.0}
{"iteration": 79, "total_loss": 1.1}
{"iteration": 99, "total_lo"""


def test_last_value_of_an_iteration_stays_and_cut_lines_go(tmp_path):
    (tmp_path / "metrics.json").write_text(LINES)
    metrics = read_metrics(tmp_path / "metrics.json")
    assert set(metrics) == {"total_loss", "lr", "loss_a"}
    iterations, values = metrics["total_loss"]
    assert iterations.tolist() == [19, 39, 59, 79]
    assert values.tolist() == [2.0, 1.2, 1.4, 1.1]
    assert [a.tolist() for a in metrics["loss_a"]] == [[39, 59], [0.7, 1.0]]


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"metrics\.json"):
        read_metrics(tmp_path / "metrics.json")


def series(*values):
    return np.arange(len(values)), np.array(values)


def curves(figure):
    return {line.get_gid(): line for axis in figure.axes for line in axis.lines}


def test_a_panel_for_every_loss_and_a_colour_for_every_run():
    runs = {
        "A": {"total_loss": series(3.0, 2.0), "loss_b": series(1.0, 0.5), "lr": series(0.1)},
        "B": {"total_loss": series(4.0, 1.0)},
    }
    figure = losses_figure(runs)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["total_loss", "loss_b"]
    drawn = curves(figure)
    assert set(drawn) == {"A:total_loss", "B:total_loss", "A:loss_b"}
    assert drawn["A:total_loss"].get_color() == drawn["A:loss_b"].get_color()
    assert drawn["A:total_loss"].get_color() != drawn["B:total_loss"].get_color()
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["A", "B"]


def test_quantities_differ_in_style():
    runs = {
        "A": {"train/expected_gflops": series(3, 2, 1), "train/real_gflops": series(4, 3, 3)},
        "B": {
            "clustering/intra_centre_experts": series(1, 2, 2),
            "clustering/inter_experts": series(2, 3, 5),
            "routing/inter_refit": series(7),
        },
    }
    cost = curves(gflops_figure(runs))
    assert {name: line.get_linestyle() for name, line in cost.items()} == {
        "A:expected": "-",
        "A:real": "--",
    }
    spread = curves(diversity_figure(runs))
    assert {name: line.get_linestyle() for name, line in spread.items()} == {
        "B:inter (experts)": "-",
        "B:intra (to centre, experts)": ":",
        "B:inter (refit)": "None",
    }
    assert spread["B:inter (experts)"].get_ydata().tolist() == [2, 3, 5]
    assert spread["B:inter (refit)"].get_ydata().tolist() == [7]
    assert spread["B:inter (refit)"].get_marker() == "D"


def test_two_points_are_marks_and_no_line():
    keys = ("train/expected_gflops", "train/real_gflops")
    figure = gflops_figure({"A": {key: series(3, 2) for key in keys}})
    drawn = curves(figure).values()
    assert {line.get_linestyle() for line in drawn} == {"None"}
    markers = [line.get_marker() for line in drawn]
    assert len({*markers}) == 2
    assert "None" not in markers
    shown = [line.get_marker() for line in figure.legends[0].get_lines()]
    assert shown[-2:] == markers


@pytest.mark.parametrize("build", [losses_figure, gflops_figure, diversity_figure])
def test_nothing_to_draw(build):
    with pytest.raises(ValueError, match="no run has"):
        build({"A": {"lr": series(1.0)}})


def test_a_groups_mean_is_over_what_all_its_runs_have():
    whole = np.array([10, 20, 30]), np.array([1.0, 2.0, 6.0])
    cut = np.array([10, 20]), np.array([3.0, 5.0])
    figure = progress_figure({"A": [whole, cut], "B": [], "C": [whole]}, "mIoU [%]")
    (axis,) = figure.axes
    assert axis.get_ylabel() == "mIoU [%]"
    means = {line.get_gid(): line for line in axis.lines if line.get_gid() in ("A", "B", "C")}
    assert set(means) == {"A", "C"}
    assert np.array_equal(means["A"].get_xdata(), [10, 20])
    assert np.array_equal(means["A"].get_ydata(), [2.0, 3.5])
    thin = [line for line in axis.lines if line not in means.values()]
    assert [line.get_ydata().tolist() for line in thin] == [[1, 2, 6], [3, 5], [1, 2, 6]]
    assert [line.get_color() for line in thin[:2]] == [means["A"].get_color()] * 2
    assert means["C"].get_color() != means["A"].get_color()


def test_progress_of_no_run_is_refused():
    with pytest.raises(ValueError, match="no run"):
        progress_figure({"A": []}, "mIoU [%]")
