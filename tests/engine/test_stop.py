import json

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import SimpleTrainer

from divdr.engine import Trainer, load_config
from divdr.engine.execution_modes import load_trained

COST_TARGET = [
    *("MODEL.ROUTING.BUDGET.WEIGHT", "0.0", "MODEL.ROUTING.BUDGET.TARGET_SHARE", "0.6"),
    *("MODEL.ROUTING.BUDGET.TARGET_START", "0.0", "MODEL.ROUTING.BUDGET.TARGET_RAMP", "2.0"),
    *("MODEL.ROUTING.BUDGET.FIX_ROUTE", "7.0", "MODEL.ROUTING.GATE_BIAS", "0.3"),
]
FROZEN = [
    *COST_TARGET[:-4],
    *("MODEL.ROUTING.BUDGET.FREEZE_GATES", "4.0", "MODEL.ROUTING.GATE", "early"),
]


def trained(repository, folder, options):
    cfg = load_config(
        str(repository / "configs/demo/divdr.yaml"), [*options, "OUTPUT_DIR", str(folder)]
    )
    trainer = Trainer(cfg)
    trainer.resume_or_load()
    trainer.train()
    return torch.load(folder / "model_final.pth", weights_only=True)


@pytest.fixture
def eager(monkeypatch):
    """As in Detectron2 0.6, whose trainer makes its iterator in the constructor."""
    made = SimpleTrainer.__init__

    def construct(self, model, loader, *args, **kwargs):
        made(self, model, loader, *args, **kwargs)
        self._data_loader_iter_obj = iter(loader)

    monkeypatch.setattr(SimpleTrainer, "__init__", construct)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    "target", [[], COST_TARGET, FROZEN], ids=["published", "cost target", "frozen gates"]
)
def test_a_run_that_stopped_goes_on_as_if_it_had_not(
    repository, scenes, overrides, names_under, tmp_path, target
):
    options = [*overrides, *target]
    quiet = ["DATASETS.TEST", "()"]
    with names_under(scenes):
        stop = ["SOLVER.STOP_ITER", "5"]
        half = trained(repository, tmp_path / "stopped", [*options, *quiet, *stop])
        assert half["iteration"] == 4
        assert not (tmp_path / "stopped" / "inference").exists()
        resumed = trained(repository, tmp_path / "stopped", options)
        straight = trained(repository, tmp_path / "straight", options)
    assert resumed["iteration"] == straight["iteration"] == 9
    for name, value in straight["model"].items():
        assert torch.equal(resumed["model"][name], value), name
    if target == FROZEN:  # from iteration 4 on, before the run stopped and after it
        own = [name for name in straight["model"] if ".early." in name]
        assert any("running_mean" in name for name in own)
        for name in own:
            if not name.endswith("threshold"):  # of the last calibration
                assert torch.equal(straight["model"][name], half["model"][name]), name
        other = next(name for name in half["model"] if ".stem." in name)
        assert not torch.equal(straight["model"][other], half["model"][other])
    if target == COST_TARGET:
        assert resumed["routing"]["cost"] == straight["routing"]["cost"]
        # From iteration 7 on all images take one route, which is among the weights.
        assert any(name.endswith("gate.route") for name in straight["model"])
        results = json.loads((tmp_path / "straight/inference/results.json").read_text())
        figures = next(iter(results.values()))["routing"]
        assert figures["real_gflops_std"] == 0.0
        assert figures["real_gflops"] < figures["all_open_gflops"]
        # What divdr and Detectron2 load is the model that was evaluated.
        cfg = load_config(str(tmp_path / "straight/config.yaml"))
        cfg.MODEL.WEIGHTS = str(tmp_path / "straight/model_final.pth")
        plain = Trainer.build_model(cfg)
        DetectionCheckpointer(plain).load(cfg.MODEL.WEIGHTS)
        for model in (load_trained(cfg), plain):
            for name, value in model.state_dict().items():
                assert torch.equal(straight["model"][name], value), name
