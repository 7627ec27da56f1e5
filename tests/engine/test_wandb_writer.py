"""What goes to wandb: a stand-in takes it down; where wandb is installed, its offline mode does."""

import os
import sys
from types import SimpleNamespace

import pytest
from classifier_runs import options, refused, run
from detectron2.utils.events import EventStorage

from divdr import get_divdr_config
from divdr.engine.wandb_writer import RUN_FILE, WandbWriter
from divdr.errors import ConfigError


class Taken:
    """Stands in for the module and for a run."""

    def __init__(self):
        self.inits, self.lines, self.ended = [], [], 0

    def init(self, **options):
        self.inits.append(options)
        self.id = options["id"] or f"new{len(self.inits)}"
        return self

    def define_metric(self, name, step_metric=None):
        assert (name, step_metric) in (("iteration", None), ("*", "iteration"))

    def log(self, line):
        self.lines.append(line)

    def finish(self):
        self.ended += 1


@pytest.fixture
def taken(monkeypatch):
    module = Taken()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_a_run_and_its_resumption_are_one(taken, tmp_path, few_digits):
    keys = ["WANDB.ENABLED", "True", "WANDB.PROJECT", "digits", "SOLVER.MAX_ITER", "4"]
    made = options(tmp_path / "mine", few_digits, *keys, "DATASETS.TEST", "()")
    run("digits_single.yaml", [*made, "SOLVER.STOP_ITER", "2"])
    run("digits_single.yaml", made, resume=True)
    first, second = taken.inits
    assert (first["project"], first["name"], first["id"]) == ("digits", "mine", None)
    assert (second["id"], second["resume"]) == ("new1", "allow")
    assert first["config"]["SOLVER"]["MAX_ITER"] == 4
    assert first["dir"] == str(tmp_path / "mine")
    assert taken.ended == 2
    assert [line["iteration"] for line in taken.lines] == [1, 3]
    assert all(line["total_loss"] > 0 for line in taken.lines)
    run("digits_single.yaml", made)  # anew in the same folder
    assert taken.inits[2]["id"] is None
    assert (tmp_path / "mine" / RUN_FILE).read_text() == "new3"


def test_it_is_missed_before_anything_is_trained(monkeypatch, capsys, tmp_path, few_digits):
    told = "error: WANDB.ENABLED is True, but wandb is not installed: pip install wandb"
    for module in (None, SimpleNamespace()):  # None: importing it fails
        monkeypatch.setitem(sys.modules, "wandb", module)
        keys = ["WANDB.ENABLED", "True"]
        assert refused(capsys, tmp_path, few_digits, *keys, config="digits_single.yaml") == told


def test_a_start_that_fails_is_a_sentence(taken, monkeypatch, tmp_path):
    def fail(**options):
        raise RuntimeError("no\nkey")

    monkeypatch.setattr(taken, "init", fail)
    cfg = get_divdr_config()
    cfg.OUTPUT_DIR = str(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot start \(no key\); WANDB_MODE=offline"):
        WandbWriter(cfg).start(resumed=False)


def test_wandb_itself_keeps_figures_offline(monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    cfg = get_divdr_config()
    cfg.OUTPUT_DIR = str(tmp_path)
    ids = []
    for resumed in (False, True):
        writer = WandbWriter(cfg)
        writer.start(resumed)
        with EventStorage(5) as storage:
            storage.put_scalar("total_loss", 2.5)
            writer.write()
        writer.close()
        ids.append((tmp_path / RUN_FILE).read_text())
    assert ids[0] == ids[1]
    kept = [name for _, _, files in os.walk(tmp_path / "wandb") for name in files]
    assert f"run-{ids[0]}.wandb" in kept
