"""The cost of a trained checkpoint set without training: one cost, or a dial of several."""

import json
import shutil

import numpy as np
import pytest
import torch

from divdr import verbs
from divdr.data import build_test_loader
from divdr.engine import Predictor, Trainer, load_config
from divdr.engine.calibration import Calibration, CostGoal
from divdr.engine.cost_search import calibrate_checkpoint, calibration_table
from divdr.engine.execution_modes import load_trained
from divdr.errors import CheckpointError, ConfigError
from divdr.modeling import CostDial, DialSetting, attached_routing


@pytest.fixture(scope="module")
def spread(halves_run, tmp_path_factory):
    """The run's config with a checkpoint whose gates stand around their threshold.

    They say so different things of images that routes differ on any machine.
    """
    content = torch.load(halves_run.MODEL.WEIGHTS, weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for name, weight in content["model"].items():
        if "gate.predict" in name and "initial" not in name:
            scale = 4.0 if weight.dim() > 1 else 0.6
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    cfg = halves_run.clone()
    cfg.MODEL.WEIGHTS = str(tmp_path_factory.mktemp("spread") / "model_final.pth")
    torch.save(content, cfg.MODEL.WEIGHTS)
    return cfg


def shares_of(model, cfg):
    """Real share of every image, by the records that evaluation gives."""
    with torch.no_grad():
        return np.array(
            [float(model(x)[0]["routing"].real_share) for x in build_test_loader(cfg, "halves")]
        )


def test_one_cost_is_a_threshold_in_the_written_config(spread, tmp_path):
    before = shares_of(load_trained(spread), spread)
    wanted = float(before.mean()) * 0.8
    rows = calibrate_checkpoint(spread, [CostGoal(wanted)], tmp_path)

    calibrated = load_config(str(tmp_path / "config.yaml"))
    model = load_trained(calibrated)
    found = shares_of(model, calibrated)
    assert found.mean() == pytest.approx(wanted, rel=0.1)  # of eight images
    assert rows[1].share == pytest.approx(found.mean(), rel=1e-5)
    assert rows[0].share == pytest.approx(before.mean(), rel=1e-5)
    assert calibrated.MODEL.ROUTING.GATE_THRESHOLD == rows[1].threshold > 0
    weights, kept = load_trained(spread).state_dict(), model.state_dict()
    assert all(kept[name].equal(value) for name, value in weights.items())
    # Evaluation agrees: the same images are those of DATASETS.TEST.
    for row in rows:
        assert row.results["routing"]["real_share"] == pytest.approx(row.share, rel=1e-5)
        assert row.results["routing"]["real_gflops"] == pytest.approx(row.gflops, rel=1e-5)
    told = json.loads((tmp_path / "calibration.json").read_text())
    assert [entry["name"] for entry in told] == ["before", f"share {wanted:g}"]
    table = calibration_table(rows)
    assert f"{rows[1].results['sem_seg']['mIoU']:.2f}" in table.splitlines()[3]


def test_each_image_stays_below_a_cost_where_that_is_asked(spread, tmp_path):
    before = shares_of(load_trained(spread), spread)
    most = float(before.max() + before.mean()) / 2
    assert before.max() > most
    goal = CostGoal(most, each=True)
    row = calibrate_checkpoint(spread, [goal], tmp_path, evaluate=False)[1]
    found = shares_of(load_trained(load_config(str(tmp_path / "config.yaml"))), spread)
    assert found.max() <= most
    assert found.max() > 0.7 * most
    assert row.results == {}


def test_experts_go_along_with_the_activations_of_their_images(spread, tmp_path):
    before = attached_routing(load_trained(spread)).experts
    calibrate_checkpoint(spread, [CostGoal(0.4)], tmp_path, evaluate=False)
    model = load_trained(load_config(str(tmp_path / "config.yaml")))
    # By hand: a centre and the mean of how far its images' activations have moved.
    activations = []
    for one in (load_trained(spread), model):
        with torch.no_grad():
            outputs = [one(x)[0]["routing"] for x in build_test_loader(spread, "halves")]
        activations.append(torch.cat([record.activations for record in outputs]))
    own = torch.cdist(activations[0], before.centres).argmin(dim=1)
    expected = before.centres.clone()
    for k in range(2):
        rows = own == k if (own == k).any() else torch.ones_like(own, dtype=torch.bool)
        expected[k] += (activations[1] - activations[0])[rows].mean(dim=0)
    torch.testing.assert_close(attached_routing(model).experts.centres, expected)


def test_several_costs_are_one_file_with_a_dial(spread, tmp_path):
    start = load_trained(spread)
    mean = float(shares_of(start, spread).mean())
    goals = [CostGoal(0.5 * mean), CostGoal(mean), CostGoal(0.8 * mean)]
    rows = calibrate_checkpoint(spread, goals, tmp_path, evaluate=False)
    folder = str(tmp_path / "config.yaml")

    plain = load_trained(load_config(folder))
    assert shares_of(plain, spread).tolist() == shares_of(start, spread).tolist()
    torch.testing.assert_close(
        attached_routing(plain).experts.centres, attached_routing(start).experts.centres
    )
    for position, row in ((0.0, rows[1]), (1.0, rows[2])):
        model = load_trained(load_config(folder, ["MODEL.ROUTING.DIAL", str(position)]))
        assert shares_of(model, spread).mean() == pytest.approx(row.share, rel=1e-5)

    cfg = load_config(folder)
    predictor = Predictor(cfg)
    costs = []
    for position in (0.0, 0.5, 1.0, 0.5):
        predictor.turn_dial(position)
        costs.append(float(shares_of(predictor.model, spread).mean()))
    assert costs[0] < costs[1] < costs[2]
    assert costs[3] == costs[1]  # back again


def test_the_command_prints_what_a_cost_costs(spread, tmp_path, capsys):
    weights = tmp_path / "run"
    weights.mkdir()
    shutil.copy(spread.MODEL.WEIGHTS, weights / "model_final.pth")
    (weights / "config.yaml").write_text(spread.dump())
    share = 0.8 * float(shares_of(load_trained(spread), spread).mean())
    words = ["calibrate", "--weights", str(weights / "model_final.pth"), "--share", str(share)]
    assert (
        verbs.main([*words, "--output", str(tmp_path / "out"), "DATALOADER.NUM_WORKERS", "0"]) == 0
    )
    said = capsys.readouterr().out
    assert f"| share {share:g} " in said
    assert "mIoU" in said
    found = load_trained(load_config(str(tmp_path / "out/config.yaml")))
    assert shares_of(found, spread).mean() == pytest.approx(share, rel=0.1)


def test_a_file_without_a_dial_has_none_to_turn(spread):
    cfg = spread.clone()
    cfg.MODEL.ROUTING.DIAL = 0.5
    with pytest.raises(ConfigError, match="no dial"):
        load_trained(cfg)
    with pytest.raises(ConfigError, match="set the cost of a trained model"):
        Trainer(cfg)


@pytest.mark.parametrize(
    ("value", "unit", "message"),
    [(1e-6, "share", "with all gates closed images cost"), (1e3, "gflops", "as it was trained")],
)
def test_a_cost_out_of_reach_tells_what_can_be_had(spread, value, unit, message):
    model = load_trained(spread)
    before = shares_of(model, spread)
    calibration = Calibration(model, attached_routing(model), build_test_loader(spread, "halves"))
    with pytest.raises(ConfigError, match=message):
        calibration.find(CostGoal(value, unit))
    assert shares_of(model, spread).tolist() == before.tolist()


def test_what_is_open_least_closes_and_the_rest_stays(spread):
    cfg = spread.clone()
    inputs = next(iter(build_test_loader(cfg, "halves")))
    first = slice(0, 6)  # the first layer looks at the same maps; a gate is the tanh of its logit
    with torch.no_grad():
        trained = load_trained(spread)(inputs)[0]["routing"].activations[0]
        opened = trained[first][trained[first] > 0].sort().values
        assert len(opened) >= 2
        value = float(opened[:2].mean())  # closes one of them
        cfg.MODEL.ROUTING.GATE_THRESHOLD = float(np.arctanh(value))
        found = load_trained(cfg)(inputs)[0]["routing"].activations[0]
        cfg.MODEL.ROUTING.INFERENCE = "reference"
        network = load_trained(cfg)(inputs)[0]["routing"].activations[0]
    torch.testing.assert_close(found, network)
    expected = torch.where(trained > value, trained, 0.0)
    torch.testing.assert_close(found[first], expected[first])
    assert not found[first].equal(trained[first])
    cfg.MODEL.ROUTING.GATE = "none"
    with pytest.raises(ConfigError, match="one cost"):
        Trainer.build_model(cfg)


def test_positions_are_even_steps_in_real_share():
    # The middle of shares 0.2 to 1.0 is 0.6: half way from the second setting to the third.
    settings = [
        DialSetting(0.0, 1.0, 3.0, torch.tensor([[4.0]])),
        DialSetting(4.0, 0.2, 1.0, torch.tensor([[0.0]])),
        DialSetting(1.0, 0.4, 1.5, torch.tensor([[1.0]])),
    ]
    dial = CostDial(settings)
    found = dial.at(0.5)
    assert (found.share, found.gflops, found.threshold) == pytest.approx((0.6, 2.0, 2 / 3))
    torch.testing.assert_close(found.centres, torch.tensor([[2.0]]))
    assert dial.at(0.25).threshold == pytest.approx(1.0)
    assert (dial.at(0.0).threshold, dial.at(1.0).threshold) == (4.0, 0.0)
    again = CostDial.from_state(dial.state_dict())
    assert again.at(0.5).centres.equal(found.centres)
    with pytest.raises(ConfigError, match="0 to 1"):
        dial.at(1.5)
    with pytest.raises(ConfigError, match="two settings"):
        CostDial(settings[:1])
    for broken in (
        [{"threshold": 0.0}],
        "text",
        [{**entry, "share": float("nan")} for entry in dial.state_dict()],
    ):
        with pytest.raises(CheckpointError, match="dial cannot be read"):
            CostDial.from_state(broken)
