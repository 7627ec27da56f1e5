"""Training on drawn subsets, as the controlled study does it."""

import json

import numpy as np
import pytest
import torch

from divdr.data import load_subsets, register_subsets
from divdr.engine import Trainer, load_config
from divdr.evaluation import pooled_miou, subset_recovery
from drawn.subsets import make_subsets

CONFIGS = "configs/studies/controlled"


@pytest.fixture(scope="module")
def subsets(tmp_path_factory):
    root = tmp_path_factory.mktemp("subsets")
    make_subsets(root, train=12, val=15, dial=0.2)
    return root


def test_the_oracle_takes_the_subsets_in_place_of_clusters(
    subsets, tmp_path, repository, names_under, overrides, monkeypatch
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(subsets))
    words = [*overrides, "OUTPUT_DIR", str(tmp_path), "MODEL.ROUTING.CLUSTERING.NUM_EXPERTS", "3"]
    cfg = load_config(str(repository / CONFIGS / "oracle_b.yaml"), words)
    with names_under(subsets):
        register_subsets(subsets)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()

    experts = torch.load(tmp_path / "model_final.pth", weights_only=True)["routing"]["experts"]
    known = load_subsets(subsets)
    stems = [key.rsplit("/", 1)[1].removesuffix(".png") for key in experts["bank"]["keys"]]
    assert len(stems) == 12
    subset = np.array([known[stem] for stem in stems])
    rows = experts["bank"]["rows"].float().numpy()
    means = np.stack([rows[subset == k].mean(0) for k in range(3)])
    np.testing.assert_allclose(experts["centres"].numpy(), means, atol=1e-5)

    figures = subset_recovery(tmp_path)
    assert set(figures) == {"kmeans", "kmeans_std", "mixture", "centres", "linear"}
    assert all(0 < value <= 100 for value in figures.values())
    results = json.loads((tmp_path / "inference" / "results.json").read_text())
    assert pooled_miou([tmp_path]) == pytest.approx(results["subsets_val"]["sem_seg"]["mIoU"])
