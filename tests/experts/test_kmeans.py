import itertools
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from divdr.errors import ConfigError, DivdrError
from divdr.experts import kmeans
from divdr.experts.kmeans import kmeans_plus_plus, lloyd

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def gates(n: int, dim: int, patterns: int, seed: int, spread: float = 0.2) -> torch.Tensor:
    """Activations as gates make them: many exact zeros, many at a ceiling, in `patterns` groups."""
    rng = np.random.default_rng(seed)
    means = rng.random((patterns, dim)) * 1.6 - 0.5
    x = means[rng.integers(0, patterns, n)] + rng.normal(0, spread, (n, dim))
    return torch.from_numpy(np.clip(x, 0, 0.9).astype(np.float32))


def dataset(kind: str, n: int, dim: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    if kind == "uniform":
        return torch.from_numpy(rng.random((n, dim)).astype(np.float32))
    if kind == "gaussian":
        return torch.from_numpy(rng.standard_normal((n, dim)).astype(np.float32))
    return gates(n, dim, 5 if kind == "clustered gates" else 1, seed)


def seeds(x: torch.Tensor, k: int, runs: int, seed: int = 0) -> torch.Tensor:
    """Starting centres (runs, k, D)."""
    generator = torch.Generator().manual_seed(seed)
    return kmeans_plus_plus(x, torch.rand((runs, k, 3), generator=generator, dtype=torch.float64))


def naive_inertia(x: torch.Tensor, centres: torch.Tensor) -> float:
    """Sum over points of the least squared distance, point by point."""
    points, rows = x.double().numpy(), centres.double().numpy()
    return sum(min(float(((p - c) ** 2).sum()) for c in rows) for p in points)


def test_two_pairs_on_a_line():
    # {0, 1} and {10, 12}: means 0.5 and 11; inertia 2·0.25 + 2·1 = 2.5.
    result = kmeans(torch.tensor([[0.0], [10.0], [1.0], [12.0]]), 2)
    assert sorted(result.centres.flatten().tolist()) == pytest.approx([0.5, 11.0])
    a = result.assignment.tolist()
    assert a[0] == a[2] != a[1] == a[3]
    assert result.inertia == pytest.approx(2.5)


def test_one_centre_is_the_mean():
    x = gates(40, 7, 2, 0)
    result = kmeans(x, 1)
    np.testing.assert_allclose(result.centres[0].numpy(), x.numpy().mean(0), atol=1e-6)
    assert result.inertia == pytest.approx(float(x.double().numpy().var(0).sum() * 40))


def test_as_many_centres_as_points():
    x = dataset("gaussian", 6, 3, 0)
    result = kmeans(x, 6)
    assert sorted(result.assignment.tolist()) == list(range(6))
    assert result.inertia == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize("kind", ["uniform", "gaussian", "gates", "clustered gates"])
@pytest.mark.parametrize(
    ("n", "dim", "k"), [(50, 2, 8), (60, 200, 5), (300, 5, 7), (1000, 2, 5), (700, 60, 3)]
)
def test_inertia_is_as_low_as_sklearns(kind, n, dim, k):
    for seed in range(3):
        x = dataset(kind, n, dim, seed)
        ours = kmeans(x, k, seed=seed).inertia
        model = KMeans(k, n_init=10, max_iter=300, random_state=seed)
        theirs = model.fit(x.double().numpy()).inertia_
        assert ours <= 1.01 * theirs


def test_inertia_is_as_low_as_sklearns_on_a_whole_training_set():
    x = gates(2975, 183, 3, 0)
    theirs = KMeans(3, n_init=10, random_state=0).fit(x.double().numpy()).inertia_
    assert kmeans(x, 3).inertia <= 1.001 * theirs


def test_more_points_than_the_search_samples():
    # Three patterns that any sample shows: the optimum is the grouping itself.
    rng = np.random.default_rng(0)
    group = rng.integers(0, 3, 6000)
    x = rng.random((3, 198))[group] + rng.normal(0, 0.05, (6000, 198))
    result = kmeans(torch.from_numpy(x), 3)
    expected = sum(((x[group == g] - x[group == g].mean(0)) ** 2).sum() for g in range(3))
    assert result.inertia == pytest.approx(expected, rel=1e-9)
    assert result.centres.dtype == torch.float64


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(2, 60),
    dim=st.integers(1, 12),
    data=st.data(),
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(["uniform", "gaussian", "clustered gates"]),
)
def test_result_is_consistent(n, dim, data, seed, kind):
    k = data.draw(st.integers(1, n))
    x = dataset(kind, n, dim, seed)
    result = kmeans(x, k, restarts=3, seed=seed)
    assert result.centres.shape == (k, dim)
    assert result.assignment.shape == (n,)
    assert result.assignment.dtype == torch.int64
    assert torch.isfinite(result.centres).all()
    assert result.inertia == pytest.approx(naive_inertia(x, result.centres), rel=1e-4, abs=1e-6)
    # A fixed point: every centre is the mean of its members.
    for centre in range(k):
        members = x[result.assignment == centre]
        if len(members):
            torch.testing.assert_close(
                result.centres[centre], members.double().mean(0).float(), atol=1e-5, rtol=1e-5
            )


def test_lloyd_takes_the_steps_of_sklearn():
    x = dataset("gaussian", 200, 4, 3).double()
    start = x[:5]
    model = KMeans(5, init=start.numpy(), n_init=1, tol=0, algorithm="lloyd").fit(x.numpy())
    labels = lloyd(x, start[None], 300)
    assert labels[0].tolist() == model.labels_.tolist()


def test_lloyd_reseeds_an_empty_centre_to_the_farthest_point():
    # The third centre gets nothing. The farthest from its own centre (20 to 12.5) is 20, which then
    # stands alone: {10, 11}, {12}, {20}. A centre left without members would leave two groups.
    x = torch.tensor([[10.0], [11.0], [12.0], [20.0]]).double()
    labels = lloyd(x, torch.tensor([[[10.5], [12.5], [1000.0]]]).double(), 100)[0]
    assert labels.tolist() == [0, 0, 1, 2]


def test_seeding_is_greedy():
    # Mean inertia of the seeds, against plain draws in proportion to the squared distance.
    x = dataset("uniform", 200, 2, 0).double()
    greedy = np.mean([naive_inertia(x, c) for c in seeds(x, 6, 40)])
    rng, points, plain = np.random.default_rng(0), x.numpy(), []
    for _ in range(40):
        chosen = [points[rng.integers(200)]]
        for _ in range(5):
            d = np.min([((points - c) ** 2).sum(1) for c in chosen], axis=0)
            chosen.append(points[rng.choice(200, p=d / d.sum())])
        plain.append(naive_inertia(x, torch.from_numpy(np.array(chosen))))
    assert greedy < 0.9 * np.mean(plain)


def test_seeds_are_distinct_points():
    # The second point is far more likely than all others, until it is chosen.
    x = torch.tensor([[0.0], [1e3], [1.0], [2.0]]).double()
    for centres in seeds(x, 4, 20):
        assert sorted(centres.flatten().tolist()) == [0.0, 1.0, 2.0, 1e3]


def test_more_seedings_than_restarts(monkeypatch):
    # Without structure one run rarely finds the best optimum; the best of several is closer to it.
    x = dataset("uniform", 300, 5, 0)
    found = [kmeans(x, 8, restarts=1, seed=seed).inertia for seed in range(8)]
    monkeypatch.setattr(sys.modules["divdr.experts.kmeans"], "_SEEDINGS", 1)
    alone = [kmeans(x, 8, restarts=1, seed=seed).inertia for seed in range(8)]
    assert sum(found) < 0.98 * sum(alone)


def test_seeding_prefers_far_points():
    # Ninety-nine points in a heap and one far away: the second seed is the one or follows it.
    x = torch.cat(
        [
            torch.rand(99, 2, generator=torch.Generator().manual_seed(0)) * 0.01,
            torch.tensor([[100.0, 0.0]]),
        ]
    ).double()
    assert ((seeds(x, 2, 20) == x[-1]).all(2).any(1)).all()


def test_far_from_the_origin():
    x = gates(200, 20, 3, 1).double()
    near, far = kmeans(x, 3), kmeans(x + 1e4, 3)
    assert far.inertia == pytest.approx(near.inertia, rel=1e-6)


def test_same_seed_same_result_and_negative_seeds():
    x = dataset("uniform", 120, 6, 0)
    for seed, backend in itertools.product((0, 5, -3, 2**70), ("torch", "sklearn")):
        one, two = (kmeans(x, 4, seed=seed, backend=backend) for _ in range(2))
        assert torch.equal(one.centres, two.centres)
        assert torch.equal(one.assignment, two.assignment)


def test_global_random_state_is_left_alone():
    x = dataset("uniform", 50, 3, 0)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    kmeans(x, 3)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("backend", ["torch", "sklearn"])
def test_fewer_distinct_points_than_centres(backend):
    x = torch.tensor([[0.0, 0.9]] * 5 + [[0.3, 0.0]] * 4)
    one, two = (kmeans(x, 4, backend=backend) for _ in range(2))
    assert torch.equal(one.centres, two.centres)
    assert torch.isfinite(one.centres).all()
    assert one.inertia == pytest.approx(0.0, abs=1e-10)
    assert len(set(one.assignment[:5].tolist())) == 1
    assert one.assignment[0] != one.assignment[5]
    assert all((x == centre).all(1).any() for centre in one.centres)


def test_lloyd_gives_ties_to_the_lowest():
    # 0 is as far from the first as from the third centre; the copy of the third gets nothing.
    x = torch.tensor([[0.0], [1.0], [-1.0], [5.0]]).double()
    labels = lloyd(x, torch.tensor([[[-1.0], [5.0], [1.0], [1.0]]]).double(), 1)
    assert labels.tolist() == [[0, 2, 0, 1]]


def test_all_points_alike():
    result = kmeans(torch.full((9, 3), 0.9), 3)
    torch.testing.assert_close(result.centres, torch.full((3, 3), 0.9))
    assert result.assignment.tolist() == [result.assignment[0].item()] * 9


def test_warm_start_keeps_to_its_optimum():
    # Corners of a 1.5 × 2 rectangle. Left/right costs 4·1² = 4 and top/bottom 4·0.75² = 2.25, but
    # left/right is a fixed point of Lloyd.
    x = torch.tensor([[0.0, 0.0], [0.0, 2.0], [1.5, 0.0], [1.5, 2.0]])
    warm = kmeans(x, 2, init=torch.tensor([[1.5, 1.0], [0.0, 1.0]]))
    assert warm.assignment.tolist() == [1, 1, 0, 0]
    assert warm.inertia == pytest.approx(4.0)
    assert kmeans(x, 2).inertia == pytest.approx(2.25)


@pytest.mark.parametrize("backend", ["torch", "sklearn"])
def test_warm_start_follows_given_centres(backend):
    x = gates(300, 10, 3, 4)
    centres = kmeans(x, 3).centres
    order = torch.tensor([2, 0, 1])
    warm = kmeans(x, 3, init=centres[order], backend=backend)
    torch.testing.assert_close(warm.centres, centres[order], atol=1e-5, rtol=0)


def test_sklearn_backend():
    x = gates(200, 12, 3, 2)
    result = kmeans(x, 3, backend="sklearn", seed=4)
    model = KMeans(3, n_init=10, random_state=4).fit(x.double().numpy())
    assert result.inertia == pytest.approx(model.inertia_, rel=1e-5)
    assert result.inertia == pytest.approx(naive_inertia(x, result.centres), rel=1e-5)


def test_half_precision_input():
    x = gates(100, 8, 2, 3)
    result = kmeans(x.half(), 2)
    assert result.centres.dtype == torch.float32
    assert result.inertia == pytest.approx(kmeans(x, 2).inertia, rel=1e-2)


def test_input_in_a_graph():
    x = gates(50, 4, 2, 3).requires_grad_()
    assert not kmeans(x, 2).centres.requires_grad


def test_more_centres_than_points():
    with pytest.raises(ConfigError, match="5 centres is larger than the data set of 3 points"):
        kmeans(torch.rand(3, 2), 5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite(bad):
    x = torch.rand(5, 2)
    x[3, 1] = bad
    with pytest.raises(DivdrError, match="not a number"):
        kmeans(x, 2)
    with pytest.raises(DivdrError, match="initial centres"):
        kmeans(torch.rand(5, 2), 5, init=x)


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"k": 0}, ValueError),
        ({"k": 2, "restarts": 0}, ValueError),
        ({"k": 2, "backend": "numpy"}, ConfigError),
        ({"k": 2, "init": torch.zeros(3, 2)}, ValueError),
    ],
)
def test_settings_that_cannot_be(kwargs, error):
    with pytest.raises(error):
        kmeans(torch.rand(5, 2), **kwargs)


def test_points_must_be_a_matrix():
    with pytest.raises(ValueError, match=r"\(N, D\)"):
        kmeans(torch.rand(5), 2)


def test_works_in_small_groups(monkeypatch):
    # With room for three runs at a time the result is the same: groups only bound the memory.
    x = gates(300, 9, 4, 6)
    expected = kmeans(x, 4)
    # By name, since the package exports the function under the name of the module.
    module = sys.modules["divdr.experts.kmeans"]
    monkeypatch.setattr(module, "_TEMPORARY_ENTRIES", 300 * 4 * 3)
    assert kmeans(x, 4).inertia == pytest.approx(expected.inertia, rel=1e-6)


@pytest.mark.cuda
@needs_cuda
def test_cuda_agrees_with_cpu():
    x = gates(3000, 183, 3, 0)
    cpu, cuda = kmeans(x, 3), kmeans(x.cuda(), 3)
    assert cuda.centres.is_cuda
    assert cuda.assignment.is_cuda
    assert cuda.inertia == pytest.approx(cpu.inertia, rel=1e-6)
    torch.testing.assert_close(cuda.centres.cpu(), cpu.centres, atol=1e-5, rtol=0)


@pytest.mark.cuda
@needs_cuda
def test_cuda_repeats_itself_without_clear_clusters():
    x = dataset("uniform", 5000, 20, 0).cuda()
    one, two = kmeans(x, 6), kmeans(x, 6)
    assert one.inertia == pytest.approx(two.inertia, rel=1e-9)
    duplicates = kmeans(torch.zeros(9, 2, device="cuda"), 3)
    assert torch.isfinite(duplicates.centres).all()
