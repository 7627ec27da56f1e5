"""A study whose trainings are a stand-in that takes no time."""

import shutil
import textwrap

import pytest
import torch
from small_study import STUDY, TRAINING

from divdr.experts import LocalExperts
from divdr.studies import load_study, plan


@pytest.fixture
def define(repository, tmp_path):
    """Plan a study from the text of its file."""

    def planned(text=STUDY, name="study", **options):
        path = tmp_path / f"{name}.yaml"
        path.write_text(textwrap.dedent(text))
        study = load_study(path)
        return study, plan(study, repository, tmp_path / "runs", **options)

    return planned


@pytest.fixture
def stand_in(repository, tmp_path, monkeypatch):
    """A repository whose trainings end at once; a list of the runs that it trained."""
    root = tmp_path / "repository"
    (root / "tools").mkdir(parents=True)
    (root / "tools" / "train_net.py").write_text(TRAINING)
    shutil.copytree(repository / "configs", root / "configs")
    log = tmp_path / "log.txt"
    log.touch()
    monkeypatch.setenv("STUDY_LOG", str(log))
    monkeypatch.setenv("STUDY_WEIGHTS", str(tmp_path / "weights.pth"))
    torch.save({"model": {}, "iteration": 4}, tmp_path / "weights.pth")
    return root, lambda: log.read_text().split()


@pytest.fixture
def bank_of_four():
    """Experts (K = 3) with a bank of four activations: two close to 0, two close to 1."""
    experts = LocalExperts(3, 2)
    rows = torch.tensor([[0.0, 0.0], [0.0, 0.2], [1.0, 1.0], [1.0, 0.8]])
    experts.bank.update(list("abcd"), rows, 0)
    experts.cluster(0)
    return experts
