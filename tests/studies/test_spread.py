import numpy as np
import pytest
from scipy.spatial.distance import pdist
from sklearn.cluster import KMeans

from divdr.studies.statistics import spread


def test_distances_agree_with_scikit_learn(tmp_path):
    random = np.random.default_rng(0)
    groups = np.repeat([0, 1, 2, 3], 10)
    rows = (random.random((4, 12))[groups] + random.normal(0, 0.02, (40, 12))).astype(np.float32)
    (tmp_path / "inference").mkdir()
    np.savez(
        tmp_path / "inference" / "activations_toy.npz",
        file_names=np.array([f"{i}.png" for i in range(40)]),
        activations=rows,
        reached=np.ones((40, 4), dtype=bool),
        expected_cost=np.ones(40),
        real_cost=np.ones(40),
        expert=np.full(40, -1),
        centres=np.zeros((0, 12)),
        scales_per_layer=np.array([2, 2]),
    )
    found = spread(tmp_path)
    for k in (2, 4):
        clusters = KMeans(k, n_init=20, random_state=0).fit(rows)
        label, centres = clusters.labels_, clusters.cluster_centers_
        assert found[f"inter_refit_{k}"] == pytest.approx(pdist(centres).mean(), rel=1e-4)
        to_centre = np.linalg.norm(rows - centres[label], axis=1).mean()
        assert found[f"intra_centre_refit_{k}"] == pytest.approx(to_centre, rel=1e-4)


def test_a_run_without_activations_has_no_distances(tmp_path):
    (tmp_path / "inference").mkdir()
    (tmp_path / "inference" / "results.json").write_text('{"toy": {"bbox": {"AP": 1}}}')
    assert spread(tmp_path) == {}
