import json

import pytest
import torch

from divdr.errors import ConfigError, DataError
from divdr.experts import KnownLabels, LocalExperts, clustering_loss

KEYS = ["a", "b", "c", "d", "e"]
ROWS = torch.tensor([[0.0], [2.0], [10.0], [12.0], [14.0]])
# Not the subsets that K-means finds.
LABELS = {"a": 1, "b": 0, "c": 0, "d": 0, "e": 1}


def experts(labels=LABELS, **options):
    made = LocalExperts(2, 1, labels=KnownLabels(labels), **options)
    made.bank.update(KEYS, ROWS, 0)
    return made


def test_centres_are_means_of_subsets():
    known = experts()
    report = known.cluster(0)
    # (2 + 10 + 12) / 3 = 8 and (0 + 14) / 2 = 7; squares 36 + 4 + 16 and 49 + 49, over 4.
    assert known.centres.flatten().tolist() == [8.0, 7.0]
    assert report.sizes == [3, 2]
    assert report.inertia == pytest.approx(154.0)
    assert float(known.sigma2) == pytest.approx(154 / 4)
    # Ids stay those of the subsets, whatever the centres do.
    known.bank.update(["b", "c", "d"], torch.tensor([[1.0], [1.0], [4.0]]), 1)
    report = known.cluster(1)
    assert known.centres.flatten().tolist() == [2.0, 7.0]
    assert report.movement == pytest.approx(3.0)


def test_loss_pulls_to_the_own_subset_and_not_to_the_nearest():
    known = experts()
    known.centres, known.sigma2 = torch.tensor([[0.0], [10.0]]), torch.tensor(1.0)
    # A = 1, 2σ² = 2: from subset 1 it is 9 away and 1 from the other: 1 + 4.5 − 0.5 = 5.
    a = torch.tensor([[1.0], [1.0]], requires_grad=True)
    loss = known.loss(a, keys=["folder/e.png", "b"])
    assert loss.tolist() == pytest.approx([5.0, 0.0])
    loss[0].backward()
    assert float(a.grad[0]) < 0  # a step down the gradient moves A up, to its subset
    nearest = clustering_loss(a, known.centres, known.sigma2)
    assert nearest.tolist() == pytest.approx([0.0, 0.0])


def test_waits_for_every_subset():
    known = LocalExperts(2, 1, labels=KnownLabels(LABELS))
    known.bank.update(["b", "c"], ROWS[:2], 0)
    assert known.cluster(0) is None
    assert not known.ready
    known.bank.update(["a"], ROWS[:1], 0)
    assert known.cluster(1) is not None


def test_one_sentence_for_what_cannot_be(tmp_path):
    with pytest.raises(ConfigError, match=r"LABELS names .*missing.json, which cannot be read"):
        KnownLabels.from_file(str(tmp_path / "missing.json"))
    (tmp_path / "list.json").write_text("[1, 2]")
    with pytest.raises(DataError, match="one JSON object"):
        KnownLabels.from_file(str(tmp_path / "list.json"))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match="no JSON file"):
        KnownLabels.from_file(str(tmp_path / "broken.json"))
    for wrong in (-1, 0.5, True, "one"):
        with pytest.raises(DataError, match="must be 0, 1"):
            KnownLabels({"a": wrong})
    with pytest.raises(DataError, match="image d has no label"):
        KnownLabels({"a": 0}).of(["a", "d"], 2)
    with pytest.raises(ConfigError, match=r"a label is 2, but .*NUM_EXPERTS is 2"):
        experts({**LABELS, "c": 2}).cluster(0)


def test_path_with_a_variable(tmp_path, monkeypatch):
    (tmp_path / "known.json").write_text(json.dumps({"x": 1}))
    monkeypatch.setenv("SOME_FOLDER", str(tmp_path))
    assert KnownLabels.from_file("$SOME_FOLDER/known.json").of(["x"], 2).tolist() == [1]
