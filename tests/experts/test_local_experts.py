import io

import numpy as np
import pytest
import torch
import torch.distributed as dist
from two_processes import join, start_two

from divdr.errors import CheckpointError, ConfigError, DivdrError
from divdr.experts import (
    KnownLabels,
    LocalExperts,
    clustering_loss,
    gate_weights,
    gaussian_mixture,
    kmeans,
    partition,
)

# Two groups on a line: {0, 2} and {10, 12, 14}, centres 1 and 12.
KEYS = ["a", "b", "c", "d", "e"]
ROWS = torch.tensor([[0.0], [2.0], [10.0], [12.0], [14.0]])


def experts_on_a_line(**kwargs) -> LocalExperts:
    experts = LocalExperts(2, 1, **kwargs)
    experts.bank.update(KEYS, ROWS, 0)
    return experts


def test_report_by_hand():
    experts = experts_on_a_line()
    assert not experts.ready
    report = experts.cluster(0)
    assert experts.ready
    assert report is not None
    assert experts.centres is not None
    assert sorted(experts.centres.flatten().tolist()) == pytest.approx([1.0, 12.0])
    # Inertia 1 + 1 + 4 + 0 + 4 = 10; σ² = 10/4; pairs 2 | 2, 4, 2; to the centre 1, 1, 2, 0, 2.
    assert report.inertia == pytest.approx(10.0)
    assert report.sigma2 == pytest.approx(2.5)
    assert experts.sigma2 is not None
    assert experts.sigma2.item() == pytest.approx(2.5)
    assert report.inter == pytest.approx(11.0)
    assert report.intra_pairs == pytest.approx(2.5)
    assert report.intra_centre == pytest.approx(1.2)
    assert sorted(report.sizes) == [2, 3]
    assert report.movement == 0.0
    assert report.seconds >= 0.0


@pytest.mark.parametrize("warm_start", [True, False])
@pytest.mark.parametrize("backend", ["torch", "sklearn"])
def test_ids_survive_clusterings(warm_start, backend):
    rng = np.random.default_rng(0)
    patterns = torch.from_numpy(rng.random((4, 12))).float()
    # Groups of 4, 8, 12 and 16, so that sizes tell the experts apart.
    group = torch.repeat_interleave(torch.arange(4), torch.tensor([4, 8, 12, 16]))
    keys = [f"{i:02d}" for i in range(40)]
    experts = LocalExperts(4, 12, warm_start=warm_start, backend=backend)
    noise = torch.from_numpy(rng.normal(0, 0.02, (8, 40, 12))).float()
    experts.bank.update(keys, patterns[group] + noise[0], 0)
    experts.cluster(0)
    expected = experts.assign(patterns)
    assert sorted(expected.tolist()) == [0, 1, 2, 3]
    for step in range(1, 8):
        experts.bank.update(keys, patterns[group] + noise[step], step)
        before = experts.centres
        report = experts.cluster(step)
        assert report is not None
        assert [report.sizes[i] for i in expected.tolist()] == [4, 8, 12, 16]
        assert torch.equal(experts.assign(patterns), expected)
        assert before is not None
        assert experts.centres is not None
        moved = np.linalg.norm((experts.centres - before).numpy(), axis=1).mean()
        assert report.movement == pytest.approx(float(moved), rel=1e-4)
        assert 0 < report.movement < 0.1


def test_sizes_follow_ids():
    experts = experts_on_a_line(warm_start=False)
    for step in range(6):
        report = experts.cluster(step)
        assert report is not None
        small = int(experts.assign(torch.tensor([[1.0]])))
        assert report.sizes[small] == 2
        assert report.intra_centre == pytest.approx(1.2)


def test_warm_start_stays_in_its_optimum():
    # Corners of a 2.5 × 2 rectangle, split into left and right. Squeezed to 1.5 × 2 the best split
    # is top and bottom, 4·0.75², but left and right, 4·1², is still a local optimum. The old right
    # centre stays the nearest of the right corners.
    experts = LocalExperts(2, 2, warm_start=True)
    wide = torch.tensor([[0.0, 0.0], [0.0, 2.0], [2.5, 0.0], [2.5, 2.0]])
    experts.bank.update(list("abcd"), wide, 0)
    experts.cluster(0)
    experts.bank.update(list("abcd"), wide * torch.tensor([0.6, 1.0]), 1)
    warm = experts.cluster(1)
    experts.warm_start = False
    cold = experts.cluster(2)
    assert warm is not None
    assert cold is not None
    assert warm.inertia == pytest.approx(4.0)
    assert cold.inertia == pytest.approx(4 * 0.75**2)


def test_too_few_rows():
    experts = LocalExperts(3, 1)
    assert experts.cluster(0) is None
    experts.bank.update(["a", "b"], torch.zeros(2, 1), 0)
    assert experts.cluster(0) is None
    assert not experts.ready
    experts.bank.update(["c"], torch.ones(1, 1), 0)
    assert experts.cluster(0) is not None  # an image each


def test_a_warm_start_is_from_settled_centres_in_the_distances_of_the_clustering(monkeypatch):
    seen = []

    def spy(x, k, *, init, **options):
        seen.append(init)
        return kmeans(x, k, init=init, **options)

    monkeypatch.setattr("divdr.experts.partition.kmeans", spy)
    experts = LocalExperts(2, 2, warm_start=True, stability=1.0, scaling="std")
    rows = torch.tensor([[0.0, 0.0], [0.0, 0.5], [8.0, 0.0], [8.0, 0.5]])
    experts.bank.update(list("abcd"), rows, 0)
    for step in range(3):
        experts.cluster(step)
    # The second clustering agrees with the first, so that the third goes on from it.
    assert seen[:2] == [None, None]
    assert experts.settled
    torch.testing.assert_close(seen[2], experts.centres * gate_weights(rows, "std"))


def test_loss_before_and_after():
    experts = experts_on_a_line()
    a = torch.tensor([[3.0], [float("nan")]], requires_grad=True)
    loss = experts.loss(a)
    assert loss.tolist() == [0.0, 0.0]
    loss.sum().backward()
    assert a.grad is not None
    assert a.grad.tolist() == [[0.0], [0.0]]
    experts.cluster(0)
    # A = 3: d = 2 and 9, 2σ² = 5; α = 3: 3 + 0.4 − 1.8 = 1.6; squared, α = 20: 20 + 0.8 − 16.2.
    a = torch.tensor([[3.0]])
    assert experts.loss(a, 3.0).item() == pytest.approx(1.6)
    assert experts.loss(a, 20.0, True).item() == pytest.approx(4.6, rel=1e-5)
    expected = clustering_loss(a, experts.centres, experts.sigma2, margin=3.0)
    assert torch.equal(experts.loss(a, 3.0), expected)


def test_collapsed_gates_meet_the_floor():
    experts = LocalExperts(2, 3, sigma2_floor=0.01)
    experts.bank.update(KEYS, torch.full((5, 3), 0.9), 0)
    report = experts.cluster(0)
    assert report is not None
    assert report.sigma2 == pytest.approx(0.01)
    a = torch.full((2, 3), 0.9, requires_grad=True)
    experts.loss(a).sum().backward()
    assert a.grad is not None
    assert torch.isfinite(a.grad).all()


def test_seed_depends_on_the_step():
    seen = []

    def spy(x, k, *, seed, **kwargs):
        seen.append(seed)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("divdr.experts.partition.kmeans", spy)
        for seed, step in [(0, 1), (0, 2), (1, 1)]:
            with pytest.raises(KeyboardInterrupt):
                experts_on_a_line(seed=seed).cluster(step)
    assert len(set(seen)) == 3


def test_single_expert():
    experts = LocalExperts(1, 1)
    experts.bank.update(KEYS, ROWS, 0)
    report = experts.cluster(0)
    assert report is not None
    assert report.inter == 0.0
    assert experts.centres is not None
    assert experts.centres.item() == pytest.approx(38 / 5)


@pytest.mark.parametrize("clustered", [False, True])
def test_state_survives_a_safe_file(clustered):
    experts = experts_on_a_line()
    if clustered:
        experts.cluster(0)
    file = io.BytesIO()
    torch.save(experts.state_dict(), file)
    file.seek(0)
    other = LocalExperts(2, 1)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.ready is clustered
    assert other.bank.keys == KEYS
    assert torch.equal(other.bank.rows, ROWS)
    if clustered:
        assert torch.equal(other.centres, experts.centres)
        assert torch.equal(other.sigma2, experts.sigma2)
        # What was saved is no view of what lives on.
        state = experts.state_dict()
        experts.centres.zero_()
        assert not torch.equal(state["centres"], experts.centres)


def test_state_without_centres_takes_centres_away():
    experts = experts_on_a_line()
    fresh = experts.state_dict()
    experts.cluster(0)
    experts.load_state_dict(fresh)
    assert not experts.ready
    assert experts.sigma2 is None


@pytest.mark.parametrize(("experts", "dim"), [(3, 1), (2, 4)])
def test_state_of_another_model(experts, dim):
    saved = experts_on_a_line().state_dict()
    with pytest.raises(CheckpointError, match=f"2 local experts.*has {experts} over {dim}"):
        LocalExperts(experts, dim).load_state_dict(saved)


def test_settings_that_cannot_be():
    with pytest.raises(ConfigError, match="got 0"):
        LocalExperts(0, 3)
    with pytest.raises(ConfigError, match="numpy"):
        LocalExperts(2, 3, backend="numpy")


def test_rows_older_than_asked_for_are_forgotten():
    experts = LocalExperts(2, 1, bank_iterations=3)
    for step, (key, row) in enumerate(zip(KEYS, ROWS, strict=True)):
        experts.bank.update([key], row[None], step)
    # Iterations 2, 3 and 4: 10, 12 and 14.
    report = experts.cluster(4)
    assert experts.bank.keys == ["c", "d", "e"]
    assert sum(report.sizes) == 3
    assert experts.cluster(6) is None  # one image is too few for two experts
    assert experts.bank.keys == ["e"]
    with pytest.raises(ConfigError, match="-1 iterations"):
        LocalExperts(2, 1, bank_iterations=-1)


def test_renamed_images_keep_rows_and_members():
    experts = experts_on_a_line()
    experts.cluster(0)
    own = experts.members.of(KEYS)
    experts.rename({"a": "A", "c": "C"})
    assert experts.bank.keys == ["A", "C"]
    assert experts.bank.rows.tolist() == [[0.0], [10.0]]
    assert experts.members.of(["A", "b", "C"]).tolist() == [int(own[0]), -1, int(own[2])]


def test_the_mixture_goes_on_and_looks_around_now_and_then(monkeypatch):
    searched, started = [], []

    def spy(x, k, *, labels, search, **options):
        searched.append(search)
        started.append(None if labels is None else labels.tolist())
        return gaussian_mixture(x, k, labels=labels, search=search, **options)

    monkeypatch.setattr("divdr.experts.partition.gaussian_mixture", spy)
    rows = torch.tensor([[0.0], [2.0]]).repeat_interleave(20, 0)
    rows = rows + torch.rand(40, 1, generator=torch.Generator().manual_seed(0)) * 0.1
    keys = [f"{i:02}" for i in range(40)]
    experts = LocalExperts(2, 1, partition="mixture")
    for step in range(14):
        if step == 7:  # resumed
            other = LocalExperts(2, 1, partition="mixture")
            other.load_state_dict(experts.state_dict())
            experts = other
        experts.bank.update(keys, rows, step)
        experts.cluster(step)
    # Nothing to go on from, then nothing to compare with, then every tenth.
    assert searched == [True, True] + [False] * 9 + [True] + [False] * 2
    # It starts from the members of the clustering before, the same ones each time.
    ids = experts.members.of(keys).tolist()
    assert started == [None] + [ids] * 13
    experts.bank.update(keys, rows.flip(0)[torch.randperm(40)], 14)
    assert experts.cluster(14).agreement < 0.9
    experts.cluster(15)
    assert searched[-2:] == [False, True]


def test_assign_needs_centres():
    with pytest.raises(DivdrError, match="no local experts yet"):
        LocalExperts(2, 3).assign(torch.zeros(1, 3))


def _worker(rank: int, folder: str) -> None:
    join(rank, folder)
    torch.save((_cluster_differently(rank), _cluster_alone(rank)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _cluster_differently(rank: int):
    # A different seed on each rank stands for devices that round differently.
    experts = LocalExperts(5, 6, seed=rank, restarts=2)
    reports = []
    for step in range(3):
        rows = torch.rand(40, 6, generator=torch.Generator().manual_seed(10 * step + rank))
        # Half of the keys are seen by both ranks, in opposite order.
        keys = [f"{i + 20 * rank:03d}" for i in range(40)][:: 1 - 2 * rank]
        experts.bank.update(keys, rows, step)
        experts.warm_start = step != 2
        reports.append(vars(experts.cluster(step)))
    return experts.state_dict(), reports


def _cluster_alone(rank: int):
    calls = []
    for name, options in (("kmeans", {}), ("gaussian_mixture", {"partition": "mixture"})):
        real = getattr(partition, name)
        setattr(partition, name, lambda *a, real=real, **o: calls.append(1) or real(*a, **o))
        experts = LocalExperts(2, 1, **options)
        experts.bank.update(KEYS, ROWS, 0)
        assert experts.cluster(0) is not None
        setattr(partition, name, real)
    reported = []
    labels = KnownLabels(dict.fromkeys("abcd", 0))
    for broken in (LocalExperts(2, 1, labels=labels), LocalExperts(2, 1)):
        broken.bank.update(KEYS, ROWS, 0)
        if broken.labels is None and rank == 0:
            broken.backend = "nothing"
        try:
            broken.cluster(0)
        except DivdrError as error:
            reported.append((type(error).__name__, str(error)))
    waiting = LocalExperts(2, 1, labels=KnownLabels(dict.fromkeys("abcde", 0)))
    waiting.bank.update(KEYS, ROWS, 0)
    return len(calls), reported, waiting.cluster(0)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What both parts of the worker return on ranks 0 and 1."""
    folder = tmp_path_factory.mktemp("two")
    start_two(_worker, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_rank_0_clusters_alone_and_its_errors_are_everybodys(two_ranks):
    (first, reported, nothing), (second, reported_there, none) = (alone for _, alone in two_ranks)
    assert (first, second) == (2, 0)
    assert reported == reported_there
    assert reported[0] == ("DataError", "image e has no label among the known subsets")
    assert reported[1][0] == "ConfigError"
    assert nothing is None
    assert none is None


def test_two_processes_have_the_same_experts(two_ranks):
    (one, reports), (two, other_reports) = (together for together, _ in two_ranks)
    assert torch.equal(one["centres"], two["centres"])
    assert torch.equal(one["sigma2"], two["sigma2"])
    assert len(one["bank"]["keys"]) == 60
    assert one["bank"]["keys"] == two["bank"]["keys"]
    assert torch.equal(one["bank"]["rows"], two["bank"]["rows"])
    assert reports == other_reports
    assert sum(reports[0]["sizes"]) == 60


def test_experts_keep_what_gates_are_weighed_by_where_they_move():
    experts = LocalExperts(2, 2, scaling="std")
    rows = torch.tensor([[0.0, 0.0], [0.0, 0.5], [8.0, 0.0], [8.0, 0.5]])
    experts.bank.update(list("abcd"), rows, 0)
    experts.cluster(0)
    before = experts.weights.clone()
    assert experts.to("cpu").weights.equal(before)
    assert before.tolist() == pytest.approx(gate_weights(rows, "std").tolist())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_experts_follow_the_device():
    experts = experts_on_a_line().to("cuda")
    experts.cluster(0)
    assert experts.centres is not None
    assert experts.centres.is_cuda
    loss = experts.loss(torch.tensor([[3.0]], device="cuda", requires_grad=True), 3.0)
    assert loss.item() == pytest.approx(1.6)
    restored = LocalExperts(2, 1).to("cuda")
    restored.load_state_dict(experts.state_dict())
    assert restored.assign(ROWS.cuda()).is_cuda
