import io

import pytest
import torch

from divdr.errors import ConfigError
from divdr.experts import LocalExperts, clustering_loss, gate_weights, kmeans, matched_share


def test_weights_by_hand():
    # Standard deviations 0.5, 0.1 and 0: 1/0.6, 1/0.2, 1/0.1. Variances 0.25, 0.01, 0; weighted
    # 0.25/0.36 + 0.01/0.04 = 0.944444 against 0.26: all times √(0.26/0.944444) = 0.524684.
    rows = torch.tensor([[0.0, 0.0, 0.3], [1.0, 0.2, 0.3]])
    weights = gate_weights(rows, "std")
    assert weights.tolist() == pytest.approx([0.874473, 2.623420, 5.246838], abs=1e-4)
    spread = (rows * weights).var(0, unbiased=False).sum()
    assert float(spread) == pytest.approx(0.26, rel=1e-5)
    assert gate_weights(rows, "none") is None


def test_gates_that_never_move():
    weights = gate_weights(torch.full((4, 3), 0.9), "std")
    assert torch.isfinite(weights).all()
    assert (weights > 0).all()


def subsets_in_small_gates():
    """One wide gate that says nothing of the subset, and six narrow ones that all do."""
    generator = torch.Generator().manual_seed(0)
    subset = torch.arange(120) % 2
    wide = torch.randint(0, 2, (120, 1), generator=generator).float()
    narrow = 0.2 * subset[:, None] + 0.02 * torch.randn(120, 6, generator=generator)
    return torch.cat([wide, narrow], 1), subset


def experts_of(rows, **options):
    experts = LocalExperts(2, rows.shape[1], **options)
    experts.bank.update([f"{i:03}" for i in range(len(rows))], rows, 0)
    experts.cluster(0)
    return experts


def test_narrow_gates_that_agree_outweigh_a_wide_one():
    rows, subset = subsets_in_small_gates()
    plain, scaled = experts_of(rows), experts_of(rows, scaling="std")
    assert matched_share(plain.assign(rows), subset) < 0.65
    assert matched_share(scaled.assign(rows), subset) == 1.0
    # Centres are activations: the mean of the members, without the weights.
    means = torch.stack([rows[subset == k].mean(0) for k in range(2)])
    order = scaled.assign(means)
    assert torch.allclose(scaled.centres[order], means, atol=1e-5)


def test_loss_and_variance_take_weighted_distances():
    rows, _ = subsets_in_small_gates()
    experts = experts_of(rows, scaling="std")
    weights = gate_weights(rows, "std")
    found = kmeans(rows * weights, 2, restarts=10, seed=0)
    assert float(experts.sigma2) == pytest.approx(found.inertia / 119, rel=1e-4)
    expected = clustering_loss(rows * weights, found.centres, experts.sigma2, margin=2.0)
    assert torch.allclose(experts.loss(rows, margin=2.0), expected, atol=1e-4)


@pytest.mark.parametrize("warm_start", [False, True])
def test_ids_survive_a_change_of_weights(warm_start):
    rows, _ = subsets_in_small_gates()
    experts = experts_of(rows, scaling="std", warm_start=warm_start)
    before = experts.assign(rows)
    keys = experts.bank.keys
    experts.bank.update(keys, rows * torch.tensor([0.5, 1, 1, 1, 1, 1, 1]), 1)
    experts.cluster(1)
    assert torch.equal(experts.assign(experts.bank.rows), before)


def test_weights_survive_a_safe_file():
    rows, _ = subsets_in_small_gates()
    experts = experts_of(rows, scaling="std")
    file = io.BytesIO()
    torch.save(experts.state_dict(), file)
    file.seek(0)
    other = LocalExperts(2, 7, scaling="std")
    state = torch.load(file, weights_only=True)
    other.load_state_dict(state)
    assert torch.equal(other.assign(rows), experts.assign(rows))
    assert torch.equal(other.loss(rows), experts.loss(rows))
    del state["weights"]  # of a checkpoint of before
    other.load_state_dict(state)
    assert other.weights is None


def test_unknown_scaling():
    with pytest.raises(ConfigError, match="SCALING must be one of none, std, not 'pca'"):
        LocalExperts(2, 3, scaling="pca")
