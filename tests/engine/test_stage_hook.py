"""Training in stages: when each begins, what a system is told, and the learning rate."""

import logging
import math

import pytest
import torch
from classifier_runs import CONFIGS, options
from detectron2.data import DatasetCatalog
from torch import nn

from divdr.engine import Trainer, load_config
from divdr.errors import DataError
from divdr.modeling.classifiers import CLASSIFIER_REGISTRY
from divdr.moe import Ensemble, Stage


class Staged(Ensemble):
    """A network of one linear layer that notes what it is told."""

    def __init__(self, stages, **shares):
        super().__init__([nn.Sequential(nn.Flatten(), nn.Linear(64, 10))], 10, 1)
        self.stages = stages
        self.progress = 0.0
        self.seen, self.told, self.batches, self.folders = [], [], [], []
        for name, share in shares.items():
            setattr(self, name, share)

    def begin(self, stage, batches):
        self.told.append((stage.name, self.progress))
        self.batches.append(batches)

    def losses(self, images, labels):
        self.seen.append(self.progress)
        return super().losses(images, labels)

    def finished(self, folder):
        self.folders.append(folder)


STAGES = [Stage("base", 0.0), Stage("gate", 0.45), Stage("experts", 0.6)]


@pytest.fixture
def train(repository, monkeypatch, tmp_path, few_digits):
    """Trains such a system for ten iterations; gives the trainer back."""
    monkeypatch.chdir(repository)
    made = {}
    monkeypatch.setitem(
        CLASSIFIER_REGISTRY._obj_map, "staged", lambda cfg: Staged(made["stages"], **made["shares"])
    )

    def run(stages=STAGES, *more, resume=False, folder="out", until=None, **shares):
        made.update(stages=stages, shares=shares)
        keys = ("MODEL.CLASSIFIER.NAME", "staged", "SOLVER.MAX_ITER", 10, "DATASETS.TEST", "()")
        keys += ("SOLVER.IMS_PER_BATCH", 8, "SOLVER.BASE_LR", 0.5, "SOLVER.CHECKPOINT_PERIOD", 1)
        keys += ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineRestartsLR", "MODEL.DEVICE", "cpu")
        opts = options(tmp_path / folder, few_digits, *keys, *more)
        trainer = Trainer(load_config(CONFIGS + "digits_single.yaml", opts))
        trainer.resume_or_load(resume=resume)
        trainer.rates = []
        if until is not None:
            trainer.max_iter = until
        step = trainer._trainer.run_step

        def noted():
            trainer.rates.append(trainer.optimizer.param_groups[0]["lr"])
            step()

        trainer._trainer.run_step = noted
        trainer.train()
        return trainer

    return run


def cosines(*lengths):
    return [0.25 * (1 + math.cos(math.pi * i / n)) for n in lengths for i in range(n)]


def test_stages_begin_once_and_the_learning_rate_with_them(train, caplog, few_digits, tmp_path):
    with caplog.at_level(logging.INFO):
        trainer = train()
    system = trainer.model.system
    assert system.seen == [i / 10 for i in range(10)]
    # 0.45 of ten iterations: the first in which training has come so far is the fifth.
    assert system.told == [("base", 0.0), ("gate", 0.5), ("experts", 0.6)]
    assert trainer.rates == pytest.approx(cosines(5, 1, 4), abs=1e-6)
    assert "Stage 'gate' of the training begins at iteration 5" in caplog.text
    assert system.folders == [str(tmp_path / "out")]
    # Every training image once, without augmentation, as the system sees them.
    records = DatasetCatalog.get(few_digits[0])
    for _ in range(2):
        images, labels = (torch.cat(parts) for parts in zip(*system.batches[1](), strict=True))
        assert labels.tolist() == [record["label"] for record in records]
        first = torch.as_tensor(records[0]["pixels"]).float()
        torch.testing.assert_close(images[0, 0], (first - 78.0) / 96.0)


def test_a_list_of_restarts_stands_before_the_stages(train):
    assert train(STAGES, "SOLVER.RESTARTS", "[0.2]").rates == pytest.approx(cosines(2, 8), abs=1e-6)


@pytest.mark.parametrize(("until", "told"), [(6, ["experts"]), (7, []), (3, ["gate", "experts"])])
def test_a_resumed_run_begins_what_has_not_begun(train, until, told):
    train(until=until)
    again = train(resume=True)
    assert again.model.system.seen == [i / 10 for i in range(until, 10)]
    assert [name for name, _ in again.model.system.told] == told
    assert again.rates == pytest.approx(cosines(5, 1, 4)[until:], abs=1e-6)


def test_a_run_that_is_broken_off_is_not_finished(train, monkeypatch):
    def fail(self, stage, batches):
        raise DataError("no cluster")

    monkeypatch.setattr(Staged, "begin", fail)
    finished = []
    monkeypatch.setattr(Staged, "finished", lambda self, folder: finished.append(folder))
    with pytest.raises(DataError, match="no cluster"):
        train()
    assert finished == []


def test_training_can_begin_and_end_at_a_stage(train):
    first = train(last_progress=0.6)
    assert first.model.system.seen == [i / 10 for i in range(6)]
    assert len(first.model.system.folders) == 1
    # Without --resume, from the weights of before.
    second = train(folder="second", first_progress=0.6)
    assert second.model.system.seen == [0.6, 0.7, 0.8, 0.9]
    assert second.model.system.told == [("experts", 0.6)]
    assert second.rates == pytest.approx(cosines(4), abs=1e-6)
    assert second.data_loader.batch_sampler.start == 6
    inside = train(folder="inside", first_progress=0.8)
    assert inside.model.system.told == [("experts", 0.8)]
    assert inside.rates == pytest.approx(cosines(4)[2:], abs=1e-6)
    # A resumed run goes on where it was.
    again = train(folder="inside", first_progress=0.8, resume=True)
    assert again.model.system.seen == []


def test_stages_too_short_to_tell_apart_begin_one_after_the_other(train):
    stages = [Stage("base", 0.0), Stage("gate", 0.81), Stage("experts", 0.89), Stage("last", 1.0)]
    system = train(stages).model.system
    assert system.told == [("base", 0.0), ("gate", 0.9), ("experts", 0.9)]


@pytest.mark.parametrize("iterations", [1, 7, 10, 49, 1000])
def test_the_first_iteration_of_a_stage_is_the_first_that_is_in_it(iterations):
    for part in range(41):
        start = part / 40
        expected = next(i for i in range(iterations + 1) if i / iterations >= start)
        assert Stage("any", start).begins(iterations) == expected
