"""Single-gated mixtures: stages, what they reach, what runs, and experts that train alone."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from divdr.errors import CheckpointError, ConfigError, DataError
from divdr.moe import (
    ResNetParts,
    SampleGate,
    SingleGate,
    Stage,
    StageClassifier,
    base_hash,
    smoothed,
    split_at,
    stages_of,
    take_common_weights,
    weighted_mean,
    with_embedding,
)
from divdr.settings import SingleGateSettings

CLASSES = 4


def network(depth=1, seed=0):
    torch.manual_seed(seed)
    parts = ResNetParts(channels=4, depth=depth, in_channels=1)
    stem = parts.stem()
    branch = parts.branch(stem.out_channels)
    return StageClassifier(stem, branch, branch.out_channels, CLASSES)


def make(experts=3, *, progress=0.0, fitted=True, stages=None, dropout=0.0, **keys):
    base = network()
    if dropout:
        base.branch = nn.Sequential(base.branch, nn.Dropout(dropout))
    shared, rest = split_at(base, "stem")
    embedding, width = with_embedding(rest)
    chosen = SingleGateSettings(experts=experts, **keys)
    made = SingleGate(
        shared,
        embedding,
        [copy.deepcopy(rest) for _ in range(experts)],
        width,
        CLASSES,
        chosen,
        in_channels=1,
        stages=stages,
    )
    for number, expert in enumerate(made.experts):  # experts that differ
        torch.manual_seed(10 + number)
        nn.init.normal_(expert.classify.weight, std=2.0)
    nn.init.normal_(made.gate.linear.weight, std=5.0)
    if fitted and experts:
        made.eval()
        made.gate.fit_samples(made._embed(images(40, seed=5)))
    made.progress = progress
    return made


def images(count=8, seed=1):
    return torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


LABELS = torch.arange(8) % CLASSES
AT = {"base": 0.0, "gate": 0.45, "experts": 0.7, "stacking": 0.95}


def parts_of(made, x):
    """g, φ's probabilities and every expert's, image by image."""
    made.eval()
    with torch.no_grad():
        rows = [made.base(made.shared(image[None])) for image in x]
        gate = [made.gate.linear(z)[0].softmax(0) for z, _ in rows]
        base = [logits[0].softmax(0) for _, logits in rows]
        experts = [[e(made.shared(image[None]))[0].softmax(0) for e in made.experts] for image in x]
    return gate, base, experts


def touched(made):
    return {n.split(".")[0] for n, p in made.named_parameters() if p.grad is not None}


def test_initial_gate_by_hand():
    gate = SampleGate(2, 2)
    z = torch.tensor([[0.0, 0.0], [0.0, 2.0], [10.0, 0.0], [10.0, 2.0]])
    gate.fit_samples(z)
    order = gate.centres[:, 0].argsort()
    torch.testing.assert_close(gate.centres[order], torch.tensor([[0.0, 1.0], [10.0, 1.0]]))
    assert float(gate.temperature) == pytest.approx(1.0)
    found = gate.initial(torch.tensor([[4.5, 1.0]]))[0, order]
    near, far = math.exp(-(4.5**2)), math.exp(-(5.5**2))
    assert found.tolist() == pytest.approx([near / (near + far), far / (near + far)])


def test_cosine_looks_at_directions_alone():
    gate = SampleGate(2, 2, similarity="cosine")
    z = torch.tensor([[1.0, 0.0], [5.0, 0.1], [0.0, 1.0], [0.1, 7.0]])
    gate.fit_samples(z)
    torch.testing.assert_close(gate.initial(z), gate.initial(100 * z))
    assert gate.initial(z).argmax(1).tolist() in ([0, 0, 1, 1], [1, 1, 0, 0])


def test_all_samples_at_their_centres():
    gate = SampleGate(2, 2)
    z = torch.tensor([[0.0, 0.0], [0.0, 0.0], [9.0, 0.0]])
    gate.fit_samples(z)
    found = gate.initial(z)
    assert found.amax(1).tolist() == [1.0, 1.0, 1.0]
    assert bool(found.isfinite().all())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 4), st.floats(0, 1))
def test_smoothed_weights_and_their_mean(seed, samples, experts, floor):
    rng = np.random.default_rng(seed)
    gate, losses = rng.random((samples, experts)), rng.random(samples)
    weights = smoothed(torch.tensor(gate), floor)
    assert weights.numpy() == pytest.approx(np.maximum(gate, floor))
    if weights[:, 0].sum() > 1e-6:
        found = float(weighted_mean(torch.tensor(losses), weights[:, 0]))
        assert found == pytest.approx(np.average(losses, weights=np.maximum(gate[:, 0], floor)))


@pytest.mark.parametrize("ensembler", ["bagging", "none", "top2"])
@pytest.mark.parametrize(("leave", "tau"), [("none", 0.5), ("confidence", None), ("anytime", None)])
def test_prediction_image_by_image(ensembler, leave, tau):
    made = make(ensembler=ensembler, exit=leave)
    x = images(12)
    gate, base, experts = parts_of(made, x)
    sure = torch.stack([b.max() for b in base])
    alpha = torch.stack([g * (1 - b.max()) for g, b in zip(gate, base, strict=True)])
    made.threshold = tau or float((alpha.amax(1) if leave == "anytime" else sure).median()) - 1e-6
    with torch.no_grad():
        prediction = made(x)
    for i in range(len(x)):
        if leave == "anytime":
            chosen = [k for k in range(3) if float(alpha[i, k]) >= made.threshold]
        elif leave == "confidence" and float(sure[i]) > made.threshold:
            chosen = []
        else:
            chosen = gate[i].argsort(descending=True)[: 2 if ensembler == "top2" else 1].tolist()
        assert prediction.ran[i].nonzero()[:, 0].tolist() == sorted(chosen)
        expected = base[i]
        if chosen:
            weights = torch.stack([gate[i][k] for k in chosen])
            each = [
                (experts[i][k] + base[i]) / 2 if ensembler == "bagging" else experts[i][k]
                for k in chosen
            ]
            expected = (weights[:, None] * torch.stack(each)).sum(0) / weights.sum()
        torch.testing.assert_close(prediction.logits[i].exp(), expected, atol=1e-5, rtol=1e-4)
    ends = prediction.ran.any(1)
    assert bool(ends.any()) if leave == "none" else 0 < int(ends.sum()) < len(x)


def test_the_ends_of_the_anytime_threshold():
    made = make(exit="anytime").eval()
    made.threshold = 0.0
    assert bool(made(images()).ran.all())
    made.threshold = 1.0
    assert not made(images()).ran.any()
    torch.testing.assert_close(
        made(images()).logits.exp(), made.base(made.shared(images()))[1].softmax(1)
    )


def test_several_thresholds_in_one_pass_and_what_is_not_chosen_does_not_run():
    made = make(exit="confidence").eval()
    x = images(12)
    seen = []
    for number, expert in enumerate(made.experts):
        expert.register_forward_hook(lambda m, args, out, n=number: seen.append((n, len(args[0]))))
    at = [0.0, float(made.base(made.shared(x))[1].softmax(1).amax(1).median()), 1.0]
    together = made.at_thresholds(x, at)
    counts = dict(seen)
    assert len(seen) == len(counts)  # each expert once, for all thresholds
    assert counts == {k: int(n) for k, n in enumerate(together[2].ran.sum(0)) if n}
    for threshold, one in zip(at, together, strict=True):
        made.threshold = threshold
        alone = made(x)
        assert alone.ran.equal(one.ran)
        torch.testing.assert_close(alone.logits, one.logits)
    seen.clear()
    made.threshold = 0.0
    made(x)
    assert not seen


@pytest.mark.parametrize(
    ("stage", "learns"),
    [("base", {"shared", "base"}), ("gate", {"gate"}), ("experts", {"experts"}),
     ("stacking", {"stackers"})],
)  # fmt: skip
def test_each_stage_reaches_its_own_parameters_alone(stage, learns):
    made = make(ensembler="stacking", progress=AT[stage]).train()
    before = {k: v.clone() for k, v in made.state_dict().items()}
    losses = made.losses(images(), LABELS)
    assert list(losses) == [f"loss_{stage}"]
    sum(losses.values()).backward()
    assert touched(made) == learns
    moved = {k.split(".")[0] for k, v in made.state_dict().items() if not v.equal(before[k])}
    # Statistics of BatchNorm move where something learns, and nowhere else.
    assert moved == (learns & {"shared", "base", "experts"})


def test_losses_of_gate_and_experts_by_hand():
    made = make(progress=AT["gate"], floor=0.1)
    x = images()
    made.eval()
    maps = made.shared(x)
    z, _ = made.base(maps)
    centres, temperature = made.gate.centres.double(), float(made.gate.temperature)
    squares = ((z.double()[:, None] - centres) ** 2).sum(2)
    initial = torch.softmax(-squares / temperature, 1)
    g = made.gate(z).double().softmax(1)
    expected = (initial * (initial / g).log().nan_to_num()).sum(1).mean()
    made.train()
    assert float(made.losses(x, LABELS)["loss_gate"]) == pytest.approx(float(expected), rel=1e-4)
    made.progress = AT["experts"]
    made.experts.eval()
    total = 0.0
    for k, expert in enumerate(made.experts):
        weights = initial[:, k].clamp(0.1, 1).detach()
        losses = F.cross_entropy(expert(maps), LABELS, reduction="none").double()
        total += float((weights * losses).sum() / weights.sum())
    made.shared.train()
    assert float(made.losses(x, LABELS)["loss_experts"]) == pytest.approx(total, rel=1e-4)


def test_the_printed_objective_is_a_likelihood():
    made = make(1, progress=AT["experts"], objective="likelihood", floor=1.0)
    made.experts.eval()
    with torch.no_grad():
        maps = made.shared(images())
        own = made.experts[0](maps).softmax(1).gather(1, LABELS[:, None])
    found = float(made.losses(images(), LABELS)["loss_experts"])
    assert found == pytest.approx(-float(own.mean()), rel=1e-4)


def test_sampling_sees_each_sample_as_often_as_it_weighs():
    made = make(2, progress=AT["experts"], weighting="sampling", floor=0.0)
    sizes = [0, 0]
    for k, expert in enumerate(made.experts):

        def count(module, args, k=k):
            sizes[k] += len(args[0])

        expert.register_forward_pre_hook(count)
    x, rounds = images(16), 100
    with torch.no_grad():
        maps = made.shared.eval()(x)
        weights = made.gate.initial(made.base.eval()(maps)[0])
        for _ in range(rounds):
            made.losses(x, torch.arange(16) % CLASSES)
    for k in range(2):
        expected, variance = weights[:, k].sum(), (weights[:, k] * (1 - weights[:, k])).sum()
        # One sample where none is drawn.
        slack = 4 * math.sqrt(rounds * float(variance)) + rounds * float((1 - weights[:, k]).prod())
        assert abs(sizes[k] - rounds * float(expected)) <= slack + 1e-3


@pytest.mark.parametrize("keys", [{}, {"weighting": "sampling"}, {"ensembler": "stacking"}])
def test_an_expert_that_trains_alone_is_the_one_that_trains_with_the_others(keys):
    def trained(own):
        made = make(dropout=0.5, expert=own, **keys).train()
        optimiser = torch.optim.SGD(made.parameters(), 0.1, momentum=0.9, weight_decay=1e-2)
        for step in range(6):
            torch.manual_seed(step)
            made.progress = 0.6 if step < 3 else 0.95
            optimiser.zero_grad()
            sum(made.losses(images(8, seed=step), LABELS).values()).backward()
            optimiser.step()
        return made.state_dict()

    together = trained(-1)
    for number in range(3):
        alone = trained(number)
        own = [k for k in alone if k.startswith((f"experts.{number}.", f"stackers.{number}."))]
        assert own
        for name in own:
            assert alone[name].equal(together[name]), name
        other = f"experts.{(number + 1) % 3}.classify.weight"
        assert not alone[other].equal(together[other])


def test_posterior_of_em_by_hand():
    stages = stages_of(SingleGateSettings(em_rounds=1, gate_stage=0.1, base_stage=0.2), 100)
    assert [s.name for s in stages] == ["base", "gate", "experts", "gate", "experts"]
    assert [s.start for s in stages] == pytest.approx([0.0, 0.2, 0.3, 0.6, 0.7])
    made = make(em_rounds=1, stages=stages, progress=0.65)
    made.begin(stages[3], lambda: pytest.fail("clusters are made once"))
    gate, _, experts = parts_of(made, images())
    with torch.no_grad():  # what trains now says nothing about this round
        made.gate.linear.weight.zero_()
        made.experts[0].classify.weight.zero_()
        maps = made.shared(images())
        found = made.targets(maps, made.base(maps)[0], LABELS)
    for i, label in enumerate(LABELS):
        q = torch.stack([gate[i][k] * experts[i][k][label] for k in range(3)])
        torch.testing.assert_close(found[i], q / q.sum(), atol=1e-5, rtol=1e-3)
    made.progress = 0.35
    initial = made.gate.initial(made.base(maps)[0])
    torch.testing.assert_close(made.targets(maps, made.base(maps)[0], LABELS), initial)


def test_beginning_clusters_once_and_starts_experts_from_the_base():
    made = make(fitted=False, em_rounds=0).train()
    x, labels = images(24, seed=3), torch.arange(24) % CLASSES
    calls = []

    def batches():
        calls.append(1)
        return iter([(x[:10], labels[:10]), (x[10:], labels[10:])])

    stages = {stage.name: stage for stage in made.stages}
    made.begin(stages["base"], batches)
    assert not calls
    assert not made.eval()(x).ran.any()  # without a gate the base answers
    made.train()
    made.begin(stages["gate"], batches)
    made.begin(stages["experts"], batches)
    assert len(calls) == 1
    assert made.training
    made.eval()
    with torch.no_grad():
        z, logits = made.base(made.shared(x))
        for expert in made.experts:
            torch.testing.assert_close(expert(made.shared(x)), logits)
    squares = torch.cdist(z, made.gate.centres).square()
    torch.testing.assert_close(squares.amin(1).mean(), made.gate.temperature, rtol=1e-4, atol=0)
    # Every centre is the mean of its samples: K-means is at rest.
    owner = squares.argmin(1)
    for k in range(3):
        torch.testing.assert_close(
            z[owner == k].mean(0), made.gate.centres[k], rtol=1e-3, atol=1e-4
        )


def test_classes_for_experts_and_the_oracle():
    made = make(2, fitted=False, partition="class", oracle=True)
    x, labels = images(16, seed=3), torch.arange(16) % CLASSES
    made.cluster(lambda: [(x, labels)])
    owners = made.gate.owners
    assert owners.bincount(minlength=2).tolist() == [2, 2]
    made.eval()
    prediction = made(x, labels)
    assert prediction.ran.long().argmax(1).equal(owners[labels])
    assert bool((prediction.ran.sum(1) == 1).all())
    with pytest.raises(ConfigError, match="needs the samples' classes"):
        made(x)


def test_an_expert_of_another_depth_takes_the_blocks_that_both_have():
    deep, shallow = (split_at(network(d, seed=d), "stem")[1] for d in (2, 1))
    taken = take_common_weights(shallow, deep)
    theirs = deep.state_dict()
    own = shallow.state_dict()
    assert taken == len(own)
    assert all(value.equal(theirs[name]) for name, value in own.items())
    assert len(theirs) > len(own)


def test_base_from_a_checkpoint():
    weights = network(seed=7).state_dict()
    made = make(2, fitted=False, base="named.pth")
    assert [s.name for s in made.stages] == ["gate", "experts"]
    made.base_weights = lambda: weights
    made.begin(made.stages[0], lambda: [(images(), LABELS)])
    other = network(seed=7).eval()
    torch.testing.assert_close(made.eval().base(made.shared(images()))[1], other(images()))


def test_bases_of_other_architectures():
    weights = network(seed=7).state_dict()
    deeper = network(depth=2).state_dict()
    more = next(name for name in sorted(deeper) if name not in weights)
    for held, told in (
        ({n: v for n, v in weights.items() if n != "classify.bias"}, "classify.bias is missing th"),
        ({**weights, "classify.bias": torch.zeros(7)}, "classify.bias is (7,) there and (4,) here"),
        (deeper, f"{more} is {tuple(deeper[more].shape)} there and missing here"),
    ):
        made = make(2, fitted=False, base="named.pth")
        before = {name: value.clone() for name, value in made.state_dict().items()}
        made.base_weights = lambda held=held: held
        with pytest.raises(CheckpointError) as caught:
            made.begin(made.stages[0], lambda: [(images(), LABELS)])
        assert f"the base's checkpoint is of another architecture: {told}" in str(caught.value)
        assert all(value.equal(before[name]) for name, value in made.state_dict().items())


def test_a_comparison_runs_base_and_experts_once():
    made = make(3, ensembler="stacking").eval()
    x = images()
    ran = []
    for name, part in [("shared", made.shared), ("base", made.base), *enumerate(made.experts)]:
        part.register_forward_hook(lambda module, args, output, name=name: ran.append(name))
    found = made.compared(x, LABELS, (0.2,))
    assert sorted(map(str, ran)) == ["0", "1", "2", "base", "shared"]
    maps = made.shared(x)
    for number, expert in enumerate(made.experts):
        own = F.cross_entropy(expert(maps), LABELS, reduction="none")
        torch.testing.assert_close(found.losses[:, number], own)
    for name, changes in (
        ("base", {"exit": "confidence"}),  # with τ 0, below
        ("bagging", {"ensembler": "bagging", "exit": "none"}),
        ("stacking", {"exit": "none"}),
        ("anytime-0.2", {"exit": "anytime", "threshold": 0.2}),
    ):
        made.settings = SingleGateSettings(experts=3, **{"ensembler": "stacking", **changes})
        made.threshold = 0.0 if name == "base" else made.settings.threshold
        alone = made(x)
        assert found.predictions[name].ran.equal(alone.ran)
        own, other = found.predictions[name].logits.softmax(1), alone.logits.softmax(1)
        torch.testing.assert_close(own, other)


def test_cost_by_hand():
    made = make(2, ensembler="stacking")
    cost = made.cost(16, 16)
    whole = network()
    shared, rest = split_at(whole, "stem")

    def macs(module, x):
        total = 0

        def add(m, args, out):
            nonlocal total
            kernel = m.weight[0].numel()
            total += kernel * out.numel()

        for m in module.modules():
            if isinstance(m, (nn.Conv2d, nn.Linear)):
                m.register_forward_hook(add)
        return module(x), lambda: total

    maps, first = macs(shared.eval(), images(1))
    _, second = macs(rest.eval(), maps)
    assert cost.experts == (second() + 2 * CLASSES**2,) * 2
    assert cost.shared == first() + second() + made.gate.linear.weight.numel()


def test_loaded_numbers_by_hand():
    made = make(2, ensembler="stacking")
    whole = sum(p.numel() for p in network().parameters())
    _, rest = split_at(network(), "stem")
    gate = 2 * (made.gate.linear.in_features + 1)
    expert = sum(p.numel() for p in rest.parameters()) + 2 * CLASSES**2 + CLASSES
    assert made.loads() == (whole + gate, (expert, expert))
    em = make(2, em_rounds=1)  # what the round before has learned never runs in evaluation
    assert em.loads().shared == whole + gate


def test_no_expert_is_the_base_alone():
    made = make(0, progress=0.9)
    assert list(made.train().losses(images(), LABELS)) == ["loss_base"]
    prediction = made.eval()(images())
    assert prediction.ran.shape == (8, 0)
    assert made.cost(16, 16).experts == ()


def test_base_hash_tells_bases_apart():
    first, second = make(2), make(3)
    assert base_hash(first) != base_hash(second)
    third = make(2)
    nn.init.zeros_(third.experts[0].classify.weight)
    assert base_hash(third) == base_hash(first)
    nn.init.zeros_(third.base.classify.weight)
    assert base_hash(third) != base_hash(first)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"experts": 1, "ensembler": "top2"}, "needs two experts, not 1"),
        ({"oracle": True}, 'needs PARTITION "class"'),
        ({"expert": 3}, "EXPERT 3: there are 3 experts, from 0"),
        ({"expert": 0, "em_rounds": 1}, "EM_ROUNDS needs all experts together"),
        ({"base_stage": 0.9, "gate_stage": 0.1}, "leave no iteration to the experts"),
        ({"threshold": 1.5}, "THRESHOLD must be between 0 and 1"),
    ],
)
def test_settings_that_contradict_each_other(keys, message):
    with pytest.raises(ConfigError, match=message):
        make(**keys)


def test_too_few_samples_and_wrong_labels():
    made = make(3, fitted=False)
    with pytest.raises(ConfigError, match="3 experts cannot share 2 samples"):
        made.cluster(lambda: [(images(2), LABELS[:2])])
    made.progress = 0.6
    with pytest.raises(ConfigError, match="no clusters yet"):
        made.losses(images(), LABELS)
    with pytest.raises(DataError, match="label 4 is no class"):
        made.losses(images(1), torch.tensor([4]))


def test_stages_cover_the_training():
    stages = stages_of(SingleGateSettings(ensembler="stacking"), 1000)
    assert stages == (
        Stage("base", 0.0), Stage("gate", 0.4), Stage("experts", 0.5), Stage("stacking", 0.9),
    )  # fmt: skip
    made = make(expert=1, stages=stages)
    assert (made.first_progress, made.last_progress) == (0.5, 1.0)
    made = make(expert=-2, stages=stages)
    assert (made.first_progress, made.last_progress) == (0.0, 0.5)
