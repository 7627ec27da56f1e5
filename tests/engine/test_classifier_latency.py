"""Grouped dispatch against running everything: what runs, and the table; no times are compared."""

import forked
import pytest
import torch
from classifier_runs import CONFIGS, options

from divdr.engine import launch, load_config
from divdr.engine.classifier_analysis import (
    latency_table,
    measure_latency,
    selection_shares,
    selection_table,
)
from divdr.errors import ConfigError, DataError
from divdr.moe import Prediction, run_all, run_groups


@pytest.fixture(autouse=True)
def _in_repository(repository, monkeypatch):
    monkeypatch.chdir(repository)


def build(name, names, folder, *more):
    """Config and classifier whose gater or delegator chooses what differs from digit to digit."""
    torch.manual_seed(0)
    cfg = load_config(f"{CONFIGS}digits_{name}.yaml", options(folder, names, *more))
    model = launch.Trainer.build_model(cfg).eval()
    with torch.no_grad():
        for part, layer in model.named_modules():
            if part.endswith(("gater.predict", "expert_selector", "task_predictor")):
                layer.weight.mul_(30)
    return cfg, model


def parts_of(system):
    return system.branches if hasattr(system, "branches") else system.experts


def count_rows(system):
    seen = [0] * len(parts_of(system))
    for number, part in enumerate(parts_of(system)):
        part.register_forward_hook(
            lambda module, args, output, number=number: seen.__setitem__(
                number, seen[number] + len(args[0])
            )
        )
    return seen


@pytest.mark.parametrize("name", ["hydra", "dynk", "coe"])
@torch.no_grad()
def test_both_dispatches_predict_alike_and_one_runs_everything(name, few_digits, tmp_path):
    tau = ("MODEL.CLASSIFIER.COE.THRESHOLD", "0.5", "MODEL.CLASSIFIER.HYDRA.THRESHOLD", "0.3")
    _, model = build(name, few_digits, tmp_path, *(tau if name != "hydra" else ()))
    system = model.system
    x = torch.randn(40, 1, 8, 8)
    seen = count_rows(system)
    grouped = system(x)
    assert 0 < grouped.ran.sum() < grouped.ran.numel()
    assert seen == grouped.ran.sum(0).tolist()
    seen[:] = [0] * len(seen)
    system.dispatch = run_all
    everything = system(x)
    assert seen == [40] * len(seen)
    assert everything.ran.equal(grouped.ran)
    torch.testing.assert_close(everything.logits, grouped.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["dynk", "coe"])
def test_every_batch_runs_each_dispatch_as_often_as_asked(name, few_digits, tmp_path):
    system = build(name, few_digits, tmp_path)[1].system.train()
    batches = list(torch.randn(12, 1, 8, 8).split(4))
    with torch.no_grad():
        ran = torch.cat([system.eval()(x).ran for x in batches])
    seen = count_rows(system.train())
    found = measure_latency(system, batches, rounds=2)
    assert (found.size, found.images) == (4, 12)
    assert found.mean_branches == pytest.approx(ran.sum().item() / 12)
    assert set(found.milliseconds) == {"groups", "all"}
    assert all(value > 0 for value in found.milliseconds.values())
    # Once to count, twice to time, and the first batch once more to warm up; all: the last three.
    first = ran[:4].sum(0)
    expected = 3 * ran.sum(0) + first + 2 * 12 + 4
    assert seen == expected.tolist()
    assert system.training
    assert system.dispatch is run_groups


@pytest.fixture(scope="module")
def saved(few_digits, tmp_path_factory, repository):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository)
        folder = tmp_path_factory.mktemp("latency")
        files = {}
        for name in ("single", "dynk"):
            _, model = build(name, few_digits, folder)
            files[name] = str(folder / f"{name}.pth")
            torch.save({"model": model.state_dict()}, files[name])
    return files


def config(name, names, tmp_path, saved):
    opts = options(tmp_path, names, "MODEL.WEIGHTS", saved[name])
    return load_config(f"{CONFIGS}digits_{name}.yaml", opts)


def test_the_table_has_a_row_a_size(few_digits, tmp_path, saved):
    table = latency_table(config("dynk", few_digits, tmp_path, saved), [1, 50], 3, 1)
    head, _, *rows = table.splitlines()
    assert head.endswith("all")
    assert "ms per image, groups" in head
    # 120 digits: three single ones, two whole batches of 50.
    assert [row.split()[:2] for row in rows] == [["1", "3"], ["50", "100"]]
    alone = latency_table(config("single", few_digits, tmp_path, saved), [8], 1, 1)
    assert "groups" not in alone
    assert [row.split()[:3] for row in alone.splitlines()[2:]] == [["8", "8", "1.000"]]


def test_which_expert_runs_for_which_class(few_digits, tmp_path, saved):
    table = selection_table(config("dynk", few_digits, tmp_path, saved))
    head, _, *rows = table.splitlines()
    assert head.split() == ["class", *(w for n in range(5) for w in ("expert", str(n))), "none"]
    assert [row.split()[0] for row in rows] == [str(n) for n in range(10)]
    shares = [list(map(float, row.split()[1:])) for row in rows]
    assert all(100 <= sum(row) <= 200.3 for row in shares)  # one or two branches an image

    modes = []

    def system(x):
        ran = torch.tensor([[1, 0], [0, 0], [1, 1], [0, 1]]).bool()
        return Prediction(torch.zeros(4, 3), ran)

    system.training, system.eval, system.train = True, lambda: None, modes.append
    batches = [(None, torch.tensor([0, 0, 2, 2]))]
    found = selection_shares(system, batches, 3)
    assert found[0].tolist() == [50.0, 0.0, 50.0]
    assert found[1].isnan().all()
    assert found[2].tolist() == [50.0, 100.0, 0.0]
    assert modes == [True]
    with pytest.raises(DataError, match="no images"):
        selection_shares(system, [], 3)


def test_numbers_that_cannot_be(few_digits, tmp_path, saved):
    cfg = config("dynk", few_digits, tmp_path, saved)
    with pytest.raises(DataError, match="has 120 images, fewer than a batch of 121"):
        latency_table(cfg, [1, 121], 1, 1)
    with pytest.raises(ConfigError, match="must be at least 1"):
        latency_table(cfg, [0], 1, 1)


def test_the_command_line(repository, tmp_path, saved):
    command = ["tools/analyse_classifier.py", "--latency", "1,4", "--batches", "2"]
    command += ["--rounds", "1", "--config-file", f"{CONFIGS}digits_dynk.yaml"]
    command += ["MODEL.WEIGHTS", saved["dynk"]]
    done = forked.run(command, repository)
    assert done.returncode == 0, done.stderr
    rows = [line.split()[:2] for line in done.stdout.splitlines()[-2:]]
    assert rows == [["1", "2"], ["4", "8"]]
