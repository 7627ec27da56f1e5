import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

from divdr.errors import ConfigError, DivdrError
from divdr.experts import LocalExperts, Membership, clustering_loss, gaussian_mixture, kmeans
from divdr.experts.mixture import TiedPoints, _completed, _fits


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
    with pytest.raises(DivdrError, match="infinite or not a number"):
        gaussian_mixture(torch.full((5, 2), float("nan")), 2)
    with pytest.raises(ConfigError, match="PARTITION must be one of kmeans, mixture, not 'ward'"):
        LocalExperts(2, 2, partition="ward")
    with pytest.raises(ConfigError, match="STABILITY must be between 0 and 1, not 2"):
        LocalExperts(2, 2, stability=2.0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), k=st.integers(1, 4), dim=st.integers(1, 9), n=st.integers(30, 90))
def test_fits_as_scikit_learn_does(seed, k, dim, n):
    rng = np.random.default_rng(seed)
    label = np.arange(n) % k
    x = rng.normal(size=(n, dim)) * rng.uniform(0, 2, dim) + rng.normal(0, 2, (k, dim))[label]
    if dim > 2:
        x[:, 1] = 0.3  # a gate that never moves
    if dim > 3:
        x[:, 2] = label * 0.02  # one that hardly does, and tells clusters apart
    start = rng.permutation(label)
    means = np.stack([x[start == c].mean(0) for c in range(k)])
    residual = x - means[start]
    precision = np.linalg.inv(residual.T @ residual / n + 1e-3 * np.eye(dim))
    steps = int(rng.integers(1, 30))
    model = GaussianMixture(
        k,
        covariance_type="tied",
        reg_covar=1e-3,
        tol=0.0,
        max_iter=steps,
        means_init=means,
        weights_init=np.bincount(start) / n,
        precisions_init=precision,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(x)
    points = TiedPoints(torch.from_numpy(x), 1e-3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("divdr.experts.mixture._TOLERANCE", 0.0)
        both = torch.from_numpy(np.stack([start, label])[:, None] == np.arange(k)[:, None])
        found = points.fit(both.double(), steps)
    np.testing.assert_allclose(found.means[0].numpy(), model.means_, atol=1e-6)
    assert float(found.likelihood[0]) == pytest.approx(model.score(x), abs=1e-6)
    shares = found.logits(points.x)[0].softmax(0).T.numpy()
    np.testing.assert_allclose(shares, model.predict_proba(x), atol=1e-6)


def test_starts_keep_their_order_and_count_once():
    x, label = uneven(0)
    points = TiedPoints(x.double(), 1e-3)
    starts = [torch.arange(500) % 3, label, (x[:, 0] > 0).long() + (x[:, 0] > 1).long()]
    alone = [float(_fits(points, [start], 3).likelihood) for start in starts]
    assert len({round(value, 3) for value in alone}) == 3
    # They take different numbers of steps, whichever comes first.
    for order in itertools.permutations(range(3)):
        together = _fits(points, [*(starts[i] for i in order), 2 - label], 3)
        # Other numbers for the same clusters are no other start.
        assert together.likelihood.tolist() == pytest.approx([alone[i] for i in order])
    assert _fits(points, [torch.zeros(500, dtype=torch.long)], 3) is None


def test_unlabelled_points_join_the_nearest_mean():
    x = torch.tensor([[0.0], [1.0], [9.0], [10.0], [6.0], [4.0]]).double()
    labels = torch.tensor([1, 1, 0, 0, -1, -1])
    assert _completed(x, labels, 2).tolist() == [1, 1, 0, 0, 0, 1]


def test_equal_points_have_equal_centres():
    x = torch.full((40, 5), 0.9)
    found = gaussian_mixture(x, 3)
    torch.testing.assert_close(found.centres, x[:3])
    assert found.inertia == pytest.approx(0.0, abs=1e-9)
    experts = LocalExperts(3, 5, partition="mixture")
    experts.bank.update([f"{i:02}" for i in range(40)], x, 0)
    assert experts.cluster(0).inter == pytest.approx(0.0, abs=1e-6)
    assert experts.cluster(1).inter == pytest.approx(0.0, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), distinct=st.integers(1, 4), k=st.integers(1, 5))
def test_centres_lie_among_the_points(seed, distinct, k):
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.random((distinct, 3))[rng.integers(0, distinct, 25)] + 5.0)
    found = gaussian_mixture(x, k, restarts=2, seed=seed)
    assert (found.centres >= x.min(0).values - 1e-9).all()
    assert (found.centres <= x.max(0).values + 1e-9).all()
    assert found.inertia == pytest.approx(
        float((x - found.centres[found.assignment]).square().sum()), abs=1e-9
    )


def test_many_points_are_searched_by_a_sample():
    """The fit to all goes on from there: points that were not in the sample count."""
    x, label = uneven(0)
    x, label = x.repeat(20, 1), label.repeat(20)
    x = x + torch.randn(x.shape, generator=torch.manual_seed(0)) * 0.01
    found = gaussian_mixture(x, 3)
    assert adjusted_rand_score(label, found.assignment) > 0.99
    for cluster in range(3):
        members = x[found.assignment == cluster].double()
        torch.testing.assert_close(found.centres[cluster], members.mean(0).float())
    labels = torch.where(torch.arange(len(x)) % 3 == 0, -1, label)
    again = gaussian_mixture(x, 3, labels=labels, search=False)
    assert adjusted_rand_score(found.assignment, again.assignment) > 0.99


def test_labels_alone_are_left_where_they_lead_nowhere():
    x, label = uneven(2)
    # The optimum next to these labels gives two odd points a Gaussian of their own.
    x[:2] = torch.tensor([[0.0, -3.0, 3.0], [0.02, -3.0, 3.0]])
    odd = torch.zeros(500, dtype=torch.long)
    odd[:2] = 1
    odd[465:] = 2
    found = gaussian_mixture(x, 3, labels=odd, search=False).assignment
    assert adjusted_rand_score(label[2:], found[2:]) > 0.99
    # Where they lead to clusters nothing else is tried.
    halves = (x[:, 0] > 0).long() + 1
    halves[465:] = 0
    kept = gaussian_mixture(x, 3, labels=halves, search=False).assignment
    best = gaussian_mixture(x, 3, labels=halves).assignment
    assert adjusted_rand_score(label[2:], kept[2:]) < adjusted_rand_score(label[2:], best[2:])


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
