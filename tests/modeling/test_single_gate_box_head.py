"""The single-gated box head against the paper's equations, proposal by proposal."""

import pytest
import torch
import torch.nn.functional as F
from boxes import (
    BACKGROUND,
    CLASSES,
    box_errors,
    config,
    count_rows,
    flat,
    losses,
    make,
    pooled,
    sampled,
    touched,
)
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import build_roi_heads
from detectron2.structures import ImageList, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from mixed_precision import DTYPES, assert_close_gradients, gradients, half
from torch import nn

from divdr.errors import ConfigError
from divdr.modeling.roi_heads.box_losses import BoxTargets, box_losses


def build(**keys):
    """Head and predictor; experts are far from the base, the gate far from equal."""
    head, predictor = make("SingleGateBoxHead", **keys)
    with torch.no_grad():
        for layer in (head.base.fc1, head.base.fc2):
            layer.weight.normal_(std=0.5)
        for expert in head.experts:
            expert.layers[-4 if len(expert.layers) > 2 else 0].weight.normal_(std=0.5)
        z = head.embed(pooled(30, seed=4))
        head.gate.fit_samples(z)
        head.gate.linear.weight.normal_().div_(z.std())
    return head, predictor


def in_stage(head, name):
    head.progress = next(stage.start for stage in head.stages if stage.name == name)
    return head.train()


def one_base(head, predictor, row):
    """What experts share, the embedding, scores and deltas of one proposal."""
    shared = head.base.conv1(row[None])
    z = F.relu(head.base.fc2(F.relu(head.base.fc1(shared.flatten(1)))))
    scores, deltas = (out[0] for out in predictor(z))
    return shared, z[0], scores, deltas


def one_expert(expert, shared):
    """Scores and deltas of an expert."""
    own = F.relu(expert.layers[3](F.relu(expert.layers[1](shared.flatten(1)))))
    return tuple(out[0] for out in expert.predictor(own))


def naive(head, predictor, row):
    """Scores, deltas and experts of one proposal, by Section 3.3."""
    shared, z, scores, deltas = one_base(head, predictor, row)
    g = head.gate.linear(z).softmax(0)
    sure = scores.softmax(0).max()
    if head.settings.exit == "anytime":
        needed = [k for k in range(len(g)) if g[k] * (1 - sure) >= head.threshold]
    else:
        never = head.settings.exit == "none"
        needed = [int(g.argmax())] if never or sure <= head.threshold else []
    if not needed:
        return scores, deltas, needed
    mixed = moved = 0
    for k in needed:
        own, own_deltas = one_expert(head.experts[k], shared)
        probabilities = own.softmax(0)
        if head.settings.ensembler == "bagging":
            probabilities = (probabilities + scores.softmax(0)) / 2
            own_deltas = (own_deltas + deltas) / 2
        share = g[k] / sum(g[n] for n in needed) if head.settings.exit == "anytime" else 1
        mixed, moved = mixed + share * probabilities, moved + share * own_deltas
    return mixed.log(), moved, needed


@pytest.mark.parametrize("ensembler", ["bagging", "none"])
@pytest.mark.parametrize(
    ("how", "threshold"), [("none", 0.9), ("confidence", 0.45), ("anytime", 0.15)]
)
@pytest.mark.parametrize("agnostic", [False, True])
@torch.no_grad()
def test_predictions_proposal_by_proposal(how, threshold, ensembler, agnostic):
    head, predictor = build(EXIT=how, ENSEMBLER=ensembler, _CLS_AGNOSTIC_BBOX_REG=agnostic)
    head.eval().threshold = threshold
    x = pooled(60)
    seen = count_rows(head.experts)
    found = head.predict(x, predictor)
    needed = []
    for row in range(60):
        scores, deltas, own = naive(head, predictor, x[row])
        torch.testing.assert_close(found.scores[row], scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.deltas[row], deltas, rtol=1e-4, atol=1e-5)
        needed.append(own)
    assert [row.nonzero()[:, 0].tolist() for row in found.ran] == needed
    counts = {k: sum(k in own for own in needed) for k in range(3)}
    assert dict(seen) == {k: count for k, count in counts.items() if count}
    if how != "none":  # both kinds of proposals, and in the anytime rule several experts
        assert {len(own) for own in needed} == ({0, 1, 2, 3} if how == "anytime" else {0, 1})


@torch.no_grad()
def test_proposals_that_exit_are_bit_by_bit_the_bases():
    head, predictor = build()
    head.eval().threshold = 0.45
    x = pooled(60)
    found = head.predict(x, predictor)
    scores, deltas = predictor(head.base(x))
    gone = ~found.ran.any(1)
    assert 5 < gone.sum() < 55
    assert found.scores[gone].equal(scores[gone])
    assert found.deltas[gone].equal(deltas[gone])
    assert not found.scores[~gone].equal(scores[~gone])
    # Without clusters it is the finished head.
    head.gate.fitted.fill_(False)
    found = head.predict(x, predictor)
    assert found.scores.equal(scores)
    assert not found.ran.any()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2), st.sampled_from(["confidence", "anytime"]))
@torch.no_grad()
def test_thresholds_order_the_cost(thresholds, how):
    torch.manual_seed(0)
    head, predictor = build(EXIT=how)
    cost = head.eval().cost(predictor)
    totals = []
    for threshold in sorted([*thresholds, 0.0, 1.0]):
        head.threshold = threshold
        totals.append(float(cost.of(head.predict(pooled(30), predictor).ran).sum()))
    most = {"confidence": 1, "anytime": 3}[how]
    ordered = totals if how == "confidence" else totals[::-1]
    assert ordered == sorted(ordered)
    assert ordered[0] == 30 * cost.shared
    assert ordered[-1] == 30 * (cost.shared + most * cost.experts[0])


@torch.no_grad()
def test_multiply_adds_by_hand():
    head, predictor = build()
    cost = head.eval().cost(predictor)
    # 4 → 5 channels by 3 × 3 on 3 × 3, 45 → 7, 7 → 7, each with ReLU; scores and deltas; gate.
    rest = 45 * 7 + 7 + 7 * 7 + 7 + 7 * (CLASSES + 1 + 4 * CLASSES)
    assert cost.shared == 4 * 9 * 5 * 9 + 45 + rest + 7 * 3
    assert cost.experts == (rest,) * 3
    head, predictor = build(SHARED_LAYERS=2)
    assert head.eval().cost(predictor).experts == (rest - 45 * 7 - 7,) * 3


def test_experts_start_as_the_base_and_then_change_nothing():
    head, predictor = build(EXIT="none")
    head.copy_base(predictor)
    head.eval()
    with torch.no_grad():
        x = pooled(20)
        found = head.predict(x, predictor)
        scores, deltas = predictor(head.base(x))
    assert found.ran.any(1).all()
    torch.testing.assert_close(found.scores, scores.log_softmax(1))
    torch.testing.assert_close(found.deltas, deltas)
    base = {id(p) for p in (*head.base.parameters(), *predictor.parameters())}
    assert not base & {id(p) for p in head.experts.parameters()}


@pytest.mark.parametrize("similarity", ["euclidean", "cosine"])
def test_the_gate_learns_the_clusters_by_their_divergence(similarity):
    head, predictor = build(SIMILARITY=similarity)
    x = pooled()
    found = losses(in_stage(head, "gate"), predictor, x)
    assert set(found) == {"loss_gate"}
    total = 0
    for row in x:
        z = one_base(head, predictor, row)[1]
        g = head.gate.linear(z).softmax(0)
        seen = z / z.norm().clamp_min(1e-12) if similarity == "cosine" else z
        squares = torch.stack([((seen - c) ** 2).sum() for c in head.gate.centres])
        target = (-squares / head.gate.temperature).softmax(0)
        total = total + (torch.xlogy(target, target) - target * g.log()).sum() / len(x)
    torch.testing.assert_close(found["loss_gate"], total, rtol=1e-4, atol=1e-5)
    found["loss_gate"].backward()
    assert touched(head, predictor) == {"gate"}


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("floor", [0.0, 0.2, 1.0])
def test_losses_of_the_experts_proposal_by_proposal(floor, agnostic):
    head, predictor = build(FLOOR=floor, _CLS_AGNOSTIC_BBOX_REG=agnostic, _BBOX_REG_LOSS_WEIGHT=2.0)
    x, labels = pooled(), flat()
    found = losses(in_stage(head, "experts"), predictor, x)
    rows = [one_base(head, predictor, row) for row in x]
    cls = box = 0
    for k, expert in enumerate(head.experts):
        own = [one_expert(expert, shared) for shared, *_ in rows]
        weights = []
        for _, z, *_ in rows:
            squares = torch.stack([((z - c) ** 2).sum() for c in head.gate.centres])
            target = (-squares / head.gate.temperature).softmax(0)[k].detach()
            weights.append(min(max(float(target), floor), 1.0))
        each = [F.cross_entropy(s, y) for (s, _), y in zip(own, labels, strict=True)]
        errors = box_errors(expert.predictor, torch.stack([d for _, d in own]), sampled())
        cls = cls + sum(w * e for w, e in zip(weights, each, strict=True)) / sum(weights)
        box = box + 2 * sum(w * e for w, e in zip(weights, errors, strict=True)) / sum(weights)
    assert set(found) == {"loss_expert_cls", "loss_expert_box_reg"}
    torch.testing.assert_close(found["loss_expert_cls"], cls, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["loss_expert_box_reg"], box, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["loss_expert_cls", "loss_expert_box_reg"])
def test_the_second_stage_reaches_the_experts_alone(name):
    head, predictor = build()
    x = pooled().requires_grad_()
    losses(in_stage(head, "experts"), predictor, x)[name].backward()
    assert touched(head, predictor) == {"experts.0", "experts.1", "experts.2"}
    assert x.grad is None


BOX_LOSSES = ["smooth_l1", "giou", "diou", "ciou"]


@pytest.mark.parametrize("kind", BOX_LOSSES)
@pytest.mark.parametrize("agnostic", [False, True])
def test_losses_of_boxes_are_detectron2s_one_by_one(kind, agnostic):
    keys = {"_CLS_AGNOSTIC_BBOX_REG": agnostic, "_BBOX_REG_LOSS_TYPE": kind}
    head, _ = build(**keys, _SMOOTH_L1_BETA=0.3, _BBOX_REG_LOSS_WEIGHT=1.5)
    expert = head.experts[1]
    targets = BoxTargets.of(sampled())
    deltas = 0.3 * torch.randn(len(targets.labels), 4 if agnostic else 4 * CLASSES)
    found = box_losses(expert.predictor, deltas, targets)
    assert (found[targets.labels == BACKGROUND] == 0).all()
    for row in range(len(deltas)):
        own = BoxTargets(*(values[row : row + 1] for values in targets))
        mean = expert.predictor.box_reg_loss(
            own.proposals, own.boxes, deltas[row : row + 1], own.labels
        )
        torch.testing.assert_close(found[row], 1.5 * mean)
    assert found.sum() > 0


@pytest.mark.parametrize("stage", ["gate", "experts"])
@pytest.mark.parametrize("labels", [[[2, 6]], [[6]], [[]]])
def test_few_proposals_and_none(labels, stage):
    head, predictor = build()
    found = losses(in_stage(head, stage), predictor, labels=labels)
    sum(found.values()).backward()
    assert all(value.isfinite() for value in found.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())
    with torch.no_grad():
        none = head.eval().predict(pooled(0), predictor)
    assert none.scores.shape == (0, CLASSES + 1)
    assert none.ran.shape == (0, 3)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float16", "bfloat16"])
@pytest.mark.parametrize("stage", ["gate", "experts"])
def test_gradients_in_mixed_precision_are_those_of_float32(stage, dtype):
    head, predictor = build()
    both = nn.ModuleDict({"head": in_stage(head, stage), "predictor": predictor})
    exact = gradients(both, losses(head, predictor))
    with half(dtype):
        values = losses(head, predictor)
    assert all(value.dtype == torch.float32 for value in values.values())
    found = gradients(both, values)
    assert {name.split(".")[1] for name in found} == {stage}
    assert_close_gradients(found, exact, dtype)
    with torch.autocast("cpu", dtype), torch.no_grad():
        prediction = head.eval().predict(pooled(), predictor)
    assert prediction.scores.isfinite().all()


# Training batches


def passes(head, predictor, batches):
    """Runs the head on batches of pooled features, as ROI heads do in training."""
    for x in batches:
        labels = [[0] * len(x)]
        assert losses(head.train(), predictor, x, labels=labels) == {}
        yield


def batches(count=4, rows=9):
    return pooled(count * rows, seed=7).split(rows)


def test_clusters_are_made_of_the_embeddings_of_training_proposals():
    head, predictor = build()
    head.gate.fitted.fill_(False)
    with torch.no_grad():
        z = head.base(torch.cat(batches())).double()
    head.begin(head.stages[0], lambda: passes(head, predictor, batches()))
    # A fixed point of K-means: each centre is the mean of its rows.
    centres = head.gate.centres.double()
    squares = ((z[:, None] - centres) ** 2).sum(2)
    for k in range(3):
        torch.testing.assert_close(z[squares.argmin(1) == k].mean(0), centres[k], rtol=0, atol=1e-5)
    nearest = squares.amin(1).mean()
    torch.testing.assert_close(head.gate.temperature.double(), nearest, rtol=1e-4, atol=1e-6)
    assert head.gate.fitted
    assert losses(in_stage(head, "gate"), predictor)["loss_gate"] > 0

    def never():
        raise AssertionError("a checkpoint's clusters stay, and experts need none")

    head.begin(head.stages[0], never)
    head.gate.fitted.fill_(False)
    head.begin(head.stages[1], never)


def test_no_more_batches_and_rows_are_looked_at_than_is_set():
    head, predictor = build(CLUSTER_BATCHES=2, CLUSTER_ROWS=10)
    head.gate.fitted.fill_(False)
    held, seen = [], []
    fit = head.gate.fit_samples
    head.gate.fit_samples = lambda z, seed: (held.append(z), fit(z, seed=seed))

    def counted():
        for batch in passes(head, predictor, batches()):
            seen.append(batch)
            yield batch

    head.begin(head.stages[0], counted)
    assert len(seen) == 2
    assert held[0].shape == (10, 7)
    of_two = head.base(torch.cat(batches()[:2]))
    assert all((of_two - row).abs().amax(1).min() < 1e-5 for row in held[0])


def test_too_few_proposals_for_the_experts():
    head, predictor = build()
    head.gate.fitted.fill_(False)
    with pytest.raises(ConfigError, match="3 experts cannot share 2 samples"):
        head.begin(head.stages[0], lambda: passes(head, predictor, [pooled(2)]))
    with pytest.raises(ConfigError, match="no clusters yet"):
        losses(in_stage(head, "gate"), predictor)


# In ROI heads


def in_roi_heads(**keys):
    cfg = config("SingleGateBoxHead", **keys)
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2"]
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 3
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    return build_roi_heads(cfg, {"p2": ShapeSpec(channels=4, stride=4)}).eval()


@torch.no_grad()
def test_roi_heads_detect_with_and_without_proposals():
    heads = in_roi_heads(EXIT="none")
    heads.box_head.gate.fit_samples(heads.box_head.embed(pooled(30)))
    features = {"p2": torch.randn(2, 4, 15, 20)}
    images = ImageList(torch.zeros(2, 3, 60, 80), [(60, 80)] * 2)

    def proposals(labels):
        return [Instances((60, 80), proposal_boxes=p.proposal_boxes) for p in sampled(labels)]

    found = heads(images, features, proposals([[0, 1], []]))[0]
    assert len(found[0]) > 0
    assert len(found[1]) == 0
    assert all(len(each) == 0 for each in heads(images, features, proposals([[], []]))[0])


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"EXPERTS": 0}, "SINGLE_GATE.EXPERTS must be at least 1, not 0"),
        ({"THRESHOLD": 1.5}, "THRESHOLD must be between 0 and 1, not 1.5"),
        ({"SHARED_LAYERS": 3}, "SHARED_LAYERS must be between 1 and 2.* not 3"),
        ({"ENSEMBLER": "stacking"}, "ENSEMBLER must be one of bagging, none, not 'stacking'"),
        ({"EXIT": "never"}, "EXIT must be one of none, confidence, anytime, not 'never'"),
        ({"_USE_SIGMOID_CE": True}, "which USE_SIGMOID_CE does not give"),
        ({"BASE_HEAD": "CoEBoxHead"}, "the box head CoEBoxHead is no nn.Sequential"),
    ],
)
def test_settings_that_cannot_be(keys, told):
    with pytest.raises(ConfigError, match=told):
        build(**keys)
