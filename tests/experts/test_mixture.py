import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from divdr.errors import ConfigError
from divdr.experts import LocalExperts, Membership, clustering_loss, gaussian_mixture, kmeans


def uneven(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A large group, long in one direction, and two small ones side by side."""
    rng = np.random.default_rng(seed)
    sizes = (430, 35, 35)
    middles = np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    label = np.repeat([0, 1, 2], sizes)
    noise = rng.normal(0, 1, (500, 3)) * [0.9, 0.05, 0.05]
    return torch.from_numpy(middles[label] + noise).float(), torch.from_numpy(label)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_finds_small_groups_that_kmeans_merges(seed):
    x, label = uneven(seed)
    found = gaussian_mixture(x, 3, seed=seed)
    assert adjusted_rand_score(label, found.assignment) > 0.99
    assert adjusted_rand_score(label, kmeans(x, 3).assignment) < 0.5
    for cluster in range(3):
        members = x[found.assignment == cluster]
        torch.testing.assert_close(found.centres[cluster], members.mean(0))
    distances = (x - found.centres[found.assignment]).square().sum()
    assert found.inertia == pytest.approx(float(distances), rel=1e-5)
    assert found.centres.dtype == torch.float32
    assert found.assignment.dtype == torch.int64


def test_given_labels_are_a_start_among_others():
    # One seeding alone does not find this partition.
    x, label = uneven(3)
    fresh = gaussian_mixture(x, 3, restarts=1, seed=3).assignment
    assert adjusted_rand_score(label, fresh) < 0.9
    labels = label.clone()
    labels[::7] = -1
    found = gaussian_mixture(x, 3, restarts=1, seed=3, labels=labels).assignment
    assert torch.equal(found, label)
    # Labels that say nothing do not keep a likelier partition from being found.
    found = gaussian_mixture(x, 3, seed=3, labels=torch.arange(500) % 3).assignment
    assert adjusted_rand_score(label, found) > 0.99


def test_odd_points_get_no_cluster_of_their_own():
    x, label = uneven(1)
    x[:3] = torch.tensor([[0.0, -3.0, 3.0], [0.02, -3.0, 3.0], [0.0, -2.98, 3.0]])
    found = gaussian_mixture(x, 3, seed=1).assignment
    assert torch.bincount(found).min() == 35
    assert adjusted_rand_score(label[3:], found[3:]) > 0.99


def test_labels_without_a_member_of_some_cluster_are_a_fresh_start():
    x, label = uneven()
    labels = torch.zeros(500, dtype=torch.long)
    found = gaussian_mixture(x, 3, labels=labels, seed=0)
    assert adjusted_rand_score(label, found.assignment) > 0.99


def test_loss_of_a_mixture_is_to_the_images_own_expert():
    x, _ = uneven()
    keys = [f"{i:03d}" for i in range(500)]
    experts = LocalExperts(3, 3, partition="mixture")
    experts.bank.update(keys, x, 0)
    experts.cluster(0)
    own = experts.members.of(keys)
    far = (own != experts.assign(x)).nonzero()[:, 0]
    assert len(far) > 0
    loss = experts.loss(x[far], keys=[keys[i] for i in far])
    expected = clustering_loss(x[far], experts.centres, experts.sigma2, assignment=own[far])
    torch.testing.assert_close(loss, expected)
    # An image that was not clustered yet belongs to the nearest.
    new = experts.loss(x[far], keys=["new"] * len(far))
    torch.testing.assert_close(new, experts_nearest(experts, x[far]))


def experts_nearest(experts, x):
    return clustering_loss(x, experts.centres, experts.sigma2)


def test_same_seed_same_result():
    x, _ = uneven()
    one, two = gaussian_mixture(x, 3, seed=5), gaussian_mixture(x, 3, seed=5)
    assert torch.equal(one.assignment, two.assignment)
    assert torch.equal(one.centres, two.centres)


def test_bad_input():
    with pytest.raises(ConfigError, match="K = 4 clusters is more than the data set's 3 points"):
        gaussian_mixture(torch.rand(3, 2), 4)
    with pytest.raises(ValueError, match="infinite or not a number"):
        gaussian_mixture(torch.full((5, 2), float("nan")), 2)
    with pytest.raises(ConfigError, match="PARTITION must be one of kmeans, mixture, not 'ward'"):
        LocalExperts(2, 2, partition="ward")
    with pytest.raises(ConfigError, match="STABILITY must be between 0 and 1, not 2"):
        LocalExperts(2, 2, stability=2.0)


def test_membership_agreement():
    before = Membership(["a", "b", "c", "d"], torch.tensor([0, 0, 1, 1]))
    assert before.agreement(["a", "b", "c", "d"], torch.tensor([1, 1, 0, 0])) == 1.0
    # By hand: pairs together in both 0, in one 2 and 2, of 6 pairs; (0 − 4/6) / (2 − 4/6).
    assert before.agreement(["a", "b", "c", "d"], torch.tensor([0, 1, 0, 1])) == pytest.approx(-0.5)
    assert before.agreement(["x"], torch.tensor([0])) == 0.0
    assert before.of(["d", "x", "a"]).tolist() == [1, -1, 0]
    assert Membership().of(["a"]) is None
    again = Membership.from_state(before.state_dict())
    assert again.of(["a", "b", "c", "d"]).tolist() == [0, 0, 1, 1]


def test_loss_waits_until_clusterings_agree():
    keys = [f"{i:03d}" for i in range(40)]
    left_right = torch.tensor([[0.0, 0.0]] * 20 + [[5.0, 0.0]] * 20)
    noise = torch.rand(40, 2, generator=torch.manual_seed(1)) * 0.1
    up_down = torch.tensor([[0.0, 0.0], [0.0, 5.0]] * 20)
    experts = LocalExperts(2, 2, stability=0.9)
    for step, rows in enumerate((left_right, up_down)):
        experts.bank.update(keys, rows + noise, step)
        report = experts.cluster(step)
        assert report.agreement < 0.5
        assert float(experts.loss(experts.centres.mean(0, keepdim=True))) == 0.0
    report = experts.cluster(2)
    assert report.agreement == 1.0
    point = experts.centres.mean(0, keepdim=True)
    assert float(experts.loss(point)) > 0.0
    # Once begun it goes on, and says so to whoever resumes.
    experts.bank.update(keys, left_right + noise, 3)
    assert experts.cluster(3).agreement < 0.5
    other = LocalExperts(2, 2, stability=0.9)
    other.load_state_dict(experts.state_dict())
    point = experts.centres.mean(0, keepdim=True)
    assert float(other.loss(point)) == float(experts.loss(point)) > 0.0


def test_a_mixture_keeps_its_partition():
    # The same square: once cut in one way, it stays so although all gates moved far.
    corner = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    x = corner.repeat_interleave(50, 0) + torch.randn(200, 2, generator=torch.manual_seed(0)) * 0.1
    keys = [f"{i:03d}" for i in range(200)]
    experts = LocalExperts(2, 2, partition="mixture")
    experts.bank.update(keys, x, 0)
    experts.cluster(0)
    for step in range(1, 6):
        experts.bank.update(keys, x + 7.0 * step, step)
        assert experts.cluster(step).agreement == 1.0
