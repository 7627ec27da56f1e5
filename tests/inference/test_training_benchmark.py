"""Steps of training beside the published way."""

import sys

import pytest
import torch
from planned import pictures, routed_network

from divdr.benchmark import (
    Against,
    Case,
    PublishedRun,
    StepMeasurement,
    Times,
    TrainingResult,
    measure_training,
    training_fits,
    training_table,
)

SMALL = {"layers": 3, "scales": 2, "channels": 4}
PEAKS = {"float32": 1e9, "bfloat16": 1e9}


def test_the_published_way_trains_like_the_network_where_all_is_open():
    network = routed_network(3, 2, reach="published").train()
    for cell in [network.initial, *network.cells()]:
        cell.gate.predict.weight.data.zero_()
        cell.gate.predict.bias.data.fill_(0.7)
    published = PublishedRun(network)
    assert not any(type(m).__name__ == "PointwiseConv2d" for m in published.network.modules())
    for run in (network, published):
        maps, record = run(pictures(3))
        (sum(m.square().mean() for m in maps) + record.expected_cost.mean() / 1e6).backward()
    pairs = zip(network.named_parameters(), published.network.parameters(), strict=True)
    for (name, own), theirs in pairs:
        assert torch.allclose(own.grad, theirs.grad, rtol=1e-8, atol=1e-10), name
    for own, theirs in zip(network.buffers(), published.network.buffers(), strict=True):
        assert torch.allclose(own, theirs)


@pytest.mark.parametrize("closed", [0.0, 0.7])
def test_every_way_takes_its_steps(closed):
    case = Case(2, (48, 64), closed, **SMALL)
    result = measure_training(case, rounds=2, device="cpu")
    rows = {row.name: row for row in result.rows}
    ways = ("published", "dense", "conditional")
    assert list(rows) == [*ways, *(f"{way}, bf16" for way in ways)]
    assert rows["published"].faster == 1.0
    assert all(len(row.times.seconds) == 2 and row.live > 0 for row in result.rows)
    if not closed:
        network, x = case.build("cpu")
        with torch.no_grad():
            record = network(x[:1])[1]
        # A backward pass counts as two forwards.
        assert rows["dense"].gmacs == pytest.approx(3 * 2 * record.full_real_cost / 1e9)
    assert rows["conditional"].gmacs < rows["dense"].gmacs  # the initial cell closes a path too
    assert "conditional, bf16" in training_table(result, PEAKS)


def test_lines_need_three_costs():
    def result(gmacs, seconds):
        row = StepMeasurement("dense", False, Times((seconds,)), 1.0, gmacs, 1)
        return TrainingResult(Case(2, (32, 32), 0.0), (row,))

    results = [result(2.0, 0.3), result(4.0, 0.5), result(8.0, 0.9)]
    assert training_fits(results[:2]) == ""
    # 0.1 s for 10⁹ multiply-adds, and 0.1 s beside: of two images.
    numbers = training_fits(results).splitlines()[-1].split("|")[1:-1]
    assert [part.strip() for part in numbers] == ["2", "dense", "10.0", "50.0"]


def test_a_step_of_ones_own_is_timed_beside(tmp_path, monkeypatch):
    (tmp_path / "own_step.py").write_text(
        "modes = []\ndef step(x, network):\n    modes.append(network.training)\n"
    )
    monkeypatch.chdir(tmp_path)
    case = Case(1, (32, 32), 0.0, **SMALL)
    result = measure_training(case, rounds=1, device="cpu", against=Against("own_step:step"))
    assert result.rows[-1].name == "own_step:step"
    assert result.rows[-1].gmacs is None
    assert set(sys.modules.pop("own_step").modes) == {True}
    assert "own_step:step" in training_table(result, PEAKS)
