"""Noisy top-k gating, routing layers, and the networks that they make."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from divdr.errors import ConfigError, DataError
from divdr.moe import (
    ClassificationSystem,
    Context,
    NoisyTopKGate,
    Router,
    RoutingLayer,
    anneal_k,
    build_expert,
    group_norm,
    num_parameters,
    per_example_network,
    run_all,
    run_groups,
)
from divdr.settings import PerExampleSettings


@pytest.mark.parametrize(
    ("first", "last", "layers", "expected"),
    [
        (7, 2, 8, [7, 6, 6, 5, 4, 3, 3, 2]),  # as printed
        (7, 2, 4, [7, 5, 4, 2]),  # 5.33, 3.67
        (4, 1, 3, [4, 3, 1]),  # 2.5 goes up, where rounding to even has 2
        (2, 1, 3, [2, 2, 1]),
        (5, 5, 2, [5, 5]),
        (1, 4, 3, [1, 3, 4]),
        (6, 2, 1, [6]),
    ],
)
def test_k_falls_over_the_layers(first, last, layers, expected):
    assert anneal_k(first, last, layers) == expected


@given(st.integers(1, 9), st.integers(1, 9), st.integers(2, 40))
def test_k_stays_within_its_ends_and_never_turns(first, last, layers):
    found = anneal_k(first, last, layers)
    assert found[0] == first
    assert found[-1] == last
    steps = [b - a for a, b in itertools.pairwise(found)]
    assert all(step * (last - first) >= 0 for step in steps)
    exact = [first + (last - first) * i / (layers - 1) for i in range(layers)]
    assert all(abs(k - value) <= 0.5 + 1e-9 for k, value in zip(found, exact, strict=True))


def gate(k=2, experts=5):
    made = NoisyTopKGate(3, experts, k)
    nn.init.normal_(made.score.weight)
    return made


def test_weights_are_a_softmax_over_the_k_best():
    made, x = gate().eval(), torch.randn(7, 3)
    found = made(x)
    for row, scores in zip(found.weights, (x @ made.score.weight.T).tolist(), strict=True):
        best = sorted(range(5), key=lambda i: -scores[i])[:2]
        total = sum(torch.tensor(scores[i]).exp() for i in best)
        expected = [torch.tensor(scores[i]).exp() / total if i in best else 0.0 for i in range(5)]
        assert row.tolist() == pytest.approx([float(v) for v in expected], rel=1e-5)
    assert found.chosen.sum(1).tolist() == [2] * 7
    assert ((found.weights == 0) == ~found.chosen).all()


def test_noise_is_of_training_and_starts_the_same_for_all():
    made, x = NoisyTopKGate(3, 4, 1), torch.randn(4000, 3)
    assert not made.score.weight.any()
    assert not made.noise.weight.any()
    assert not [name for name, _ in made.named_parameters() if "bias" in name]
    used = made(x).chosen.float().mean(0)
    assert used.tolist() == pytest.approx([0.25] * 4, abs=0.03)
    made.eval()
    assert made(x).chosen.float().mean(0).tolist().count(1.0) == 1


@pytest.mark.parametrize("noise", [0.0, 0.5, 3.0])
def test_noise_is_as_large_as_it_is_set(noise):
    made, x = NoisyTopKGate(3, 2, 1, noise), torch.randn(20000, 3)
    with torch.no_grad():
        made.score.weight.copy_(torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
    x[:, 0] = 0.7  # by so much is the second expert's score the larger one
    found = made(x)
    # Of softplus(0) · noise is each score's deviation, √2 times that of their difference.
    deviation = math.sqrt(2) * noise * math.log(2)
    expected = 1.0 if not noise else 0.5 * (1 + math.erf(0.7 / deviation / math.sqrt(2)))
    assert found.chosen[:, 1].float().mean() == pytest.approx(expected, abs=0.015)
    # The load says of each sample how likely the expert is, by the noise of one score alone.
    if noise:
        assert found.load.detach().mean(0)[1] == pytest.approx(expected, abs=0.015)
    else:
        assert found.load.equal(found.chosen.float())
        assert made.eval()(x).chosen.equal(found.chosen)


def test_noise_of_every_layer_is_that_of_the_settings():
    for model, experts in (("layers", ("skip_connect", "conv_3x3")), ("linear", ("linear",) * 2)):
        network = per_example_network(
            PerExampleSettings(
                model=model, layers=2, filters=4, experts=experts, k_first=1, k_last=1, noise=0.25
            ),
            [3],
            size=4,
        )
        gates = [m for m in network.modules() if isinstance(m, NoisyTopKGate)]
        assert [gate.deviation for gate in gates] == [0.25] * 2
    cells = PerExampleSettings(
        model="cells", layers=1, filters=4, experts=("skip_connect",), k_first=1, k_last=1, noise=2
    )
    gates = [m for m in per_example_network(cells, [3]).modules() if isinstance(m, NoisyTopKGate)]
    assert [gate.deviation for gate in gates] == [2] * 8
    with pytest.raises(ConfigError, match=r"noise must be at least 0, not -1"):
        NoisyTopKGate(3, 2, 1, -1.0)


def test_gradients_reach_both_matrices():
    made, x = gate(), torch.randn(6, 3)
    (made(x).weights * torch.randn(6, 5)).sum().backward()
    assert made.score.weight.grad.any()
    assert made.noise.weight.grad.any()


@pytest.mark.parametrize("k", [0, 6])
def test_k_that_cannot_be(k):
    with pytest.raises(ConfigError, match=f"between 1 and the 5 that there are, not {k}"):
        NoisyTopKGate(3, 5, k)


class Counted(nn.Module):
    """Multiplies by a number and notes how many samples it saw."""

    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(float(factor)))
        self.seen = []

    def forward(self, x):
        self.seen.append(len(x))
        return x * self.factor


def layer(k, experts=3, kind="pooled"):
    modules = [Counted(number + 1) for number in range(experts)]
    made = RoutingLayer(modules, ["x"] * experts, Router(kind, 4, 2, experts, k))
    nn.init.normal_(made.router.gate.score.weight)
    return made.eval()


def context(count, tasks=None):
    tasks = torch.zeros(count, dtype=torch.int64) if tasks is None else tasks
    return Context(tasks, torch.eye(2)[tasks.clamp(max=1)])


@pytest.mark.parametrize(("k", "experts"), [(1, 3), (2, 3), (3, 3), (1, 1)])
def test_a_layer_is_the_weighted_sum_of_the_chosen_experts(k, experts):
    made, x = layer(k, experts), torch.randn(6, 4, 5, 3)
    found, gating = made(x, context(6))
    for row in range(6):
        scores = (made.router.gate.score.weight @ x[row].mean((1, 2))).detach()
        best = sorted(range(experts), key=lambda i: -float(scores[i]))[:k]
        shares = torch.stack([scores[i] for i in best]).softmax(0)
        factor = sum(float(s) * (i + 1) for s, i in zip(shares, best, strict=True))
        torch.testing.assert_close(found[row], factor * x[row])
    # Each ran once, on those that chose it; one that nobody chose not at all.
    for number, expert in enumerate(made.experts):
        count = int(gating.chosen[:, number].sum())
        assert expert.seen == ([count] if count else [])


def test_a_sample_s_result_and_path_do_not_depend_on_its_batch():
    made, x = layer(2), torch.randn(6, 4, 5, 3)
    whole, gating = made(x, context(6))
    alone = [made(x[i : i + 1], context(1)) for i in range(6)]
    torch.testing.assert_close(whole, torch.cat([y for y, _ in alone]))
    assert gating.chosen.equal(torch.cat([g.chosen for _, g in alone]))


def test_unused_experts_get_no_gradient():
    made, x = layer(1, 3), torch.randn(4, 4, 2, 2)
    made.router.gate.score.weight.data.zero_()
    made.router.gate.score.weight.data[1] = 1.0  # the sign of the sum decides
    output, gating = made(x.abs(), context(4))
    output.sum().backward()
    assert [e.factor.grad is None for e in made.experts] == [True, False, True]
    assert gating.chosen[:, 1].all()


@pytest.mark.parametrize("kind", ["constant", "task"])
def test_what_is_alike_for_the_gate_takes_one_path_in_training_too(kind):
    made = layer(2, 5, kind).train()
    tasks = torch.arange(40) % 2
    chosen = made(torch.randn(40, 4, 2, 2), context(40, tasks))[1].chosen
    paths = [{tuple(row) for row in chosen[tasks == t].tolist()} for t in (0, 1)]
    assert [len(p) for p in paths] == [1, 1]
    assert kind == "task" or paths[0] == paths[1]
    own = layer(2, 5).train()(torch.randn(40, 4, 2, 2), context(40))[1].chosen
    assert len({tuple(row) for row in own.tolist()}) > 5


def test_routers_that_cannot_be():
    with pytest.raises(ConfigError, match="pooled, pooled_task, task, constant, not 'maps'"):
        Router("maps", 4, 2, 3, 1)
    with pytest.raises(ConfigError, match='router "task" needs several tasks'):
        Router("task", 4, 0, 3, 1)


def test_experts_by_name():
    norm = group_norm(2)
    x = torch.randn(2, 8, 9, 7)
    weights = {"conv_3x3": 2 * 9, "conv_5x5": 2 * 25, "conv_7x7": 2 * 49, "conv_1x7_7x1": 14}
    for name, taps in weights.items():
        made = build_expert(name, 8, norm)
        assert made(x).shape == x.shape
        kernels = sum(m.weight.numel() for m in made.modules() if isinstance(m, nn.Conv2d))
        assert kernels == taps * 64
        last = list(made.modules())[-2:]
        assert [type(m) for m in last] == [nn.GroupNorm, nn.ReLU]
    pooled = build_expert("max_pool_3x3", 8, norm)(x)
    assert pooled[0, 0, 4, 4] == x[0, 0, 3:6, 3:6].max()
    assert build_expert("avg_pool_3x3", 8, norm)(x)[0, 0, 0, 0].item() == pytest.approx(
        x[0, 0, :2, :2].mean().item(), abs=1e-6
    )
    assert build_expert("skip_connect", 8, norm)(x) is x
    squeeze = build_expert("squeeze_excite", 8, norm)
    shares = squeeze(x) / x
    torch.testing.assert_close(shares, shares[:, :, :1, :1].expand_as(x))
    assert ((shares > 0) & (shares < 1)).all()


def test_an_operation_that_does_not_exist_names_the_nearest():
    with pytest.raises(ConfigError, match="no expert operation 'conv3x3'; nearest are conv_3x3"):
        build_expert("conv3x3", 8, group_norm(2))
    with pytest.raises(ConfigError, match="6 channels do not divide among 4 groups"):
        build_expert("conv_3x3", 6, group_norm(4))


def small(**keys):
    keys = {"filters": 4, "layers": 3, "k_first": 7, "norm_groups": 2, **keys}
    return PerExampleSettings(**keys)


def gates(made):
    return [m for m in made.modules() if isinstance(m, NoisyTopKGate)]


def test_omniglot_s_network_has_the_printed_size_with_one_convolution_for_each_pair():
    classes = [34] * 20  # 20 alphabets of about so many characters
    pairs = num_parameters(per_example_network(PerExampleSettings(), classes, 1))
    single = num_parameters(per_example_network(PerExampleSettings(convolutions=1), classes, 1))
    # Kernels of eight layers by hand: 48 · 48 · (2 · (9 + 25 + 49) + 14), and with one each.
    assert pairs - 8 * 48 * 48 * 180 == pytest.approx(0.05e6, rel=0.1)
    assert single - 8 * 48 * 48 * 97 == pytest.approx(0.047e6, rel=0.1)
    assert round(pairs / 1e6, 1) == 3.4  # 3.3 million without readouts and gates
    assert round(single / 1e6, 1) == 1.8


def test_a_network_of_several_tasks():
    made = per_example_network(small(task_width=3), (2, 4, 3), 1)
    assert isinstance(made, ClassificationSystem)
    assert [(stage.name, stage.start) for stage in made.stages] == [("routing", 0.0)]
    images, tasks = torch.randn(9, 1, 8, 8), torch.arange(9) % 3
    logits, ran = made.eval()(images, tasks)
    assert logits.shape == (9, 4)
    assert (logits.isfinite().sum(1) == torch.tensor([2, 4, 3] * 3)).all()
    assert ran.shape == (9, 21)
    # 7, 4.5 -> 5, 2 of each layer.
    assert [ran[:, d.columns].sum(1).unique().tolist() for d in made.decisions] == [[7], [5], [2]]
    # An image's logits are by its own task's readout, whatever else is in the batch.
    alone = torch.cat([made(images[i : i + 1], tasks[i : i + 1]).logits for i in range(9)])
    torch.testing.assert_close(alone, logits)
    assert made.dispatch is run_groups
    made.dispatch = run_all
    torch.testing.assert_close(made(images, tasks).logits, logits)
    other = made(images, (tasks + 1) % 3).logits
    assert not torch.allclose(other[:, :2], logits[:, :2])


def test_each_task_s_readout_and_embedding_learn_from_its_images_alone():
    made = per_example_network(small(task_width=3), (2, 4, 3), 1)
    for each in gates(made):  # as long as they are 0, embeddings get no gradient
        nn.init.normal_(each.score.weight)
    tasks = torch.tensor([0, 0, 2, 2])
    losses = made.losses(torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]), tasks)
    assert all(bool(value.isfinite()) for value in losses.values())
    sum(losses.values()).backward()
    assert [r.weight.grad is not None for r in made.readouts] == [True, False, True]
    assert made.embedding.weight.grad.any(1).tolist() == [True, False, True]


def test_losses_are_cross_entropy_and_balance_that_fades():
    made = per_example_network(small(balance_weight=(0.4, 0.1)), (5,), 1)
    images, labels = torch.randn(16, 1, 8, 8), torch.arange(16) % 5
    found = []
    for progress in (0.0, 0.5, 1.0):
        made.progress = progress
        torch.manual_seed(1)  # the same noise
        found.append({k: v.item() for k, v in made.losses(images, labels).items()})
    for name in ("loss_importance", "loss_load"):
        first = found[0][name]
        assert first > 0
        assert [f[name] / first for f in found] == pytest.approx([1, 0.625, 0.25])
    assert found[0]["loss_classes"] == found[2]["loss_classes"]
    # By hand from one decision's gating: the last of one layer.
    one = per_example_network(small(layers=1, k_first=2), (5,), 1)
    torch.manual_seed(3)
    losses = one.losses(images, labels)
    torch.manual_seed(3)
    maps = one.stem(images)
    gating = one.body.layers[0].router(maps, Context(labels * 0, images.new_zeros(16, 0)))
    importance = gating.weights.sum(0)
    assert losses["loss_importance"].item() == pytest.approx(
        0.1 * (importance.var(correction=0) / importance.mean() ** 2).item(), rel=1e-4
    )
    load = gating.load.sum(0)
    assert losses["loss_load"].item() == pytest.approx(
        0.1 * (load.var(correction=0) / load.mean() ** 2).item(), rel=1e-4
    )


@pytest.mark.parametrize("model", ["layers", "cells", "linear"])
def test_the_cost_is_what_runs(model):
    keys = {"experts": ("conv_3x3", "conv_1x7_7x1", "skip_connect"), "k_first": 3, "k_last": 1}
    if model == "linear":
        keys["experts"] = ("linear",) * 5
    made = per_example_network(small(model=model, layers=2, **keys), (5,), 1, size=12).eval()
    for each in gates(made):
        nn.init.normal_(each.score.weight)
    images = nn.functional.interpolate(torch.randn(20, 1, 3, 3), 12)  # noise all looks alike
    cost = made.cost(12, 12)
    for image in images[:3]:
        with FlopCounterMode(display=False) as counter:
            _, ran = made(image[None])
        assert cost.of(ran).item() == pytest.approx(counter.get_total_flops() / 2)
    assert len({tuple(row) for row in made(images).ran.tolist()}) > 1


def test_cells_make_the_paper_s_numbers_of_decisions():
    for cells, decisions in ((6, 48), (12, 96)):
        made = per_example_network(
            small(model="cells", layers=cells, filters=2, k_first=5), (5,), 1
        )
        assert len(made.decisions) == decisions
        # A cell's first block has two inputs, its fourth five; the first cell takes all.
        images = torch.randn(2, 1, 16, 16)
        ran = made.eval()(images).ran
        taken = [int(ran[0, d.columns].sum()) for d in made.decisions]
        assert taken[:8] == [2, 5, 3, 5, 4, 5, 5, 5]
        assert taken[-8:] == [2] * 8
        sum(made.train().losses(images, torch.tensor([1, 2])).values()).backward()


def test_networks_that_cannot_be():
    for keys, told in (
        ({"k_first": 8}, "K_FIRST is 8, but there are 7 EXPERTS"),
        ({"pool_after": (4,)}, "POOL_AFTER names layer 4 of 3"),
        ({"experts": ("linear",), "k_first": 1, "k_last": 1}, "MODEL is 'layers', an expert 'lin"),
        ({"model": "linear"}, "MODEL is 'linear', an expert 'conv_3x3'"),
        ({"balance_weight": (0.1,)}, "two numbers, at the start and at the end, not 1"),
    ):
        with pytest.raises(ConfigError, match=told):
            per_example_network(small(**keys), (5,), 1)
    linear = small(model="linear", experts=("linear",) * 2, k_first=2)
    with pytest.raises(ConfigError, match=r"needs INPUT\.CLASSIFICATION\.SIZE"):
        per_example_network(linear, (5,), 1)


def test_tasks_and_labels_that_cannot_be():
    made = per_example_network(small(), (2, 4), 1)
    images = torch.randn(2, 1, 8, 8)
    with pytest.raises(DataError, match="task 2 has no readout; the model's tasks are 0 to 1"):
        made(images, torch.tensor([0, 2]))
    with pytest.raises(DataError, match="the model has 2 tasks; an image must say which is its"):
        made(images)
    with pytest.raises(DataError, match="label 3 is no class of task 0; there are 2 classes"):
        made.losses(images, torch.tensor([3, 3]), torch.tensor([1, 0]))


def test_half_precision_keeps_choices_and_trains():
    made = per_example_network(small(), (5,), 1)
    with torch.autocast("cpu", torch.bfloat16):
        losses = made.losses(torch.randn(8, 1, 8, 8), torch.arange(8) % 5)
    assert {value.dtype for value in losses.values()} == {torch.float32}
    sum(losses.values()).backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in made.parameters())
