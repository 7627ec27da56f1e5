"""The collaboration of experts as a box head against Eq. 2 to 10 proposal by proposal."""

import pytest
import torch
import torch.nn.functional as F
from boxes import (
    LABELS,
    box_errors,
    count_rows,
    flat,
    losses,
    make,
    pooled,
    sampled,
    touched,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from mixed_precision import DTYPES, assert_close_gradients, gradients, half
from torch import nn

from divdr.errors import ConfigError

SECOND = 10  # START 0.5 of 21 iterations (10.5, to the even number); α is 0.2 there, 0.8 at 21


def build(**keys):
    return make("CoEBoxHead", **keys)


def vogel(costs):
    """Row by row: the largest penalty first, to its cheapest column that has room."""
    rows, columns = costs.shape
    room = [rows // columns + (k < rows % columns) for k in range(columns)]
    waiting, assigned = set(range(rows)), [0] * rows
    while waiting:
        opened = [k for k in range(columns) if room[k]]

        def penalty(row, opened=opened):
            values = sorted(costs[row, k].item() for k in opened)
            return values[1] - values[0] if len(values) > 1 else 0.0

        row = max(sorted(waiting), key=penalty)
        column = min(opened, key=lambda k: costs[row, k].item())
        assigned[row], room[column] = column, room[column] - 1
        waiting.remove(row)
    return assigned


@pytest.mark.parametrize("agnostic", [False, True])
def test_losses_against_a_loop_over_proposals_and_experts(agnostic):
    head, predictor = build(
        _CLS_AGNOSTIC_BBOX_REG=agnostic, _BBOX_REG_LOSS_WEIGHT=2.0, SELECTOR_WEIGHT=0.6
    )
    found = losses(head.train(), predictor, iteration=SECOND + 5)
    alpha = 0.2 + 0.6 * 5 / 11
    x, labels = pooled(), flat()
    rough = head.delegator(x)
    scores, deltas = predictor(rough)
    probabilities = head.selector(rough).softmax(1)
    count, experts = len(labels), 3
    assigned = vogel(-probabilities.detach())
    per_class, per_box, true_class = [], [], []
    for expert in head.experts:
        own_scores, own_deltas = expert.predictor(expert.layers(x))
        rows = [F.cross_entropy(s, y) for s, y in zip(own_scores, labels, strict=True)]
        per_class.append(rows)
        per_box.append(box_errors(expert.predictor, own_deltas, sampled()))
        true_class.append([s.softmax(0)[y].item() for s, y in zip(own_scores, labels, strict=True)])
    cls = box = 0.0
    for k in range(experts):
        bar = [(1 - alpha) / experts + (alpha if assigned[j] == k else 0) for j in range(count)]
        cls = cls + sum(bar[j] / sum(bar) * per_class[k][j] for j in range(count))
        box = box + sum(bar[j] / sum(bar) * per_box[k][j] for j in range(count))
    suited = torch.tensor(true_class, dtype=torch.float64).T
    suited = (suited - suited.mean(0)) / suited.std(0, correction=0)
    named = vogel(-suited)
    weights = suited.std(1, correction=0) / suited.std(1, correction=0).sum()
    selection = sum(-weights[j] * probabilities[j, named[j]].log() for j in range(count))
    expected = {
        "loss_cls": F.cross_entropy(scores, labels),
        "loss_box_reg": 2 * box_errors(predictor, deltas, sampled()).sum() / count,
        "loss_expert_cls": cls,
        "loss_expert_box_reg": 2 * box,
        "loss_selector": 0.6 * selection.float(),
    }
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_the_first_stage_trains_the_delegator_alone():
    head, predictor = build()
    seen = count_rows(head.experts)
    found = losses(head.train(), predictor, iteration=SECOND - 1)
    assert set(found) == {"loss_cls", "loss_box_reg"}
    assert seen == []
    sum(found.values()).backward()
    assert touched(head) == {"delegator"}


@pytest.mark.parametrize(
    ("name", "reached"),
    [
        ("loss_cls", {"delegator"}),
        ("loss_selector", {"selector"}),
        ("loss_expert_cls", {"experts.0", "experts.1", "experts.2"}),
        ("loss_expert_box_reg", {"experts.0", "experts.1", "experts.2"}),
    ],
)
def test_what_each_loss_of_the_second_stage_reaches(name, reached):
    head, predictor = build()
    losses(head.train(), predictor, iteration=SECOND)[name].backward()
    assert touched(head) == reached


def test_a_frozen_delegator_gets_nothing_in_the_second_stage():
    head, predictor = build(FREEZE_DELEGATOR=True)
    found = losses(head.train(), predictor, iteration=SECOND)
    assert set(found) == {"loss_selector", "loss_expert_cls", "loss_expert_box_reg"}
    sum(found.values()).backward()
    assert touched(head) == {"selector", "experts.0", "experts.1", "experts.2"}
    assert all(p.grad is None for p in predictor.parameters())
    assert "loss_cls" in losses(head, predictor, iteration=SECOND - 1)


def test_the_maps_below_learn_as_from_one_expert():
    head, predictor = build()
    x = pooled().requires_grad_()
    losses(head.train(), predictor, x, iteration=SECOND)["loss_expert_cls"].backward()
    gradients = []
    for expert in head.experts:
        own = pooled().requires_grad_()
        scores = expert.predictor(expert.layers(own))[0]
        F.cross_entropy(scores, flat()).backward()
        gradients.append(own.grad)
    # α = 0.2: hardly any sharper than the mean over all proposals.
    mean = torch.stack(gradients).mean(0)
    assert 0.8 < x.grad.norm() / mean.norm() < 1.3


@torch.no_grad()
def test_only_doubted_proposals_reach_an_expert():
    head, predictor = build()
    head.eval()
    head.selector.weight.normal_(std=5)
    x = pooled(60)
    rough = head.delegator(x)
    scores, deltas = predictor(rough)
    certainty = scores.softmax(1).amax(1)
    head.threshold = float(certainty.median())
    wanted = head.selector(rough).argmax(1)
    seen = count_rows(head.experts)
    found = head.predict(x, predictor)
    sent = certainty <= head.threshold
    assert sent.sum() == 30
    assert dict(seen) == {k: int((wanted[sent] == k).sum()) for k in set(wanted[sent].tolist())}
    assert found.ran.sum(1).tolist() == sent.long().tolist()
    for row in range(60):
        expected = (scores[row], deltas[row])
        if sent[row]:
            expert = head.experts[int(wanted[row])]
            expected = [out[0] for out in expert.predictor(expert.layers(x[row : row + 1]))]
        torch.testing.assert_close(found.scores[row], expected[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.deltas[row], expected[1], rtol=1e-4, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=5))
@torch.no_grad()
def test_a_higher_threshold_never_costs_less(thresholds):
    torch.manual_seed(0)
    head, predictor = build()
    cost = head.eval().cost(predictor)
    totals = []
    for threshold in sorted([*thresholds, 0.0, 1.0]):
        head.threshold = threshold
        totals.append(float(cost.of(head.predict(pooled(30), predictor).ran).sum()))
    assert totals == sorted(totals)
    assert totals[0] == 30 * cost.shared  # 0 sends nothing, 1 sends everything
    assert totals[-1] == 30 * (cost.shared + cost.experts[0])


@torch.no_grad()
def test_multiply_adds_by_hand():
    head, predictor = build()
    cost = head.eval().cost(predictor)
    # Delegator 4 → 3 channels on 3 × 3, ReLU, 27 → 6, ReLU; scores and deltas 6 → 31; selector.
    assert cost.shared == 4 * 3 * 9 + 27 + 27 * 6 + 6 + 6 * 31 + 6 * 3
    assert cost.experts == (36 * 8 + 8 + 8 * 7 + 7 + 7 * 31,) * 3


@pytest.mark.parametrize("labels", [[[2, 6]], [[6]], [[]]])
@pytest.mark.parametrize("alpha", [[0.2, 0.8], [1.0, 1.0]])
def test_fewer_proposals_than_experts(labels, alpha):
    head, predictor = build(ALPHA=alpha)
    found = losses(head.train(), predictor, labels=labels, iteration=SECOND)
    sum(found.values()).backward()
    assert all(torch.isfinite(value) for value in found.values())
    with torch.no_grad():
        assert head.eval().predict(pooled(0), predictor).scores.shape == (0, 7)


def test_what_is_not_finite_shows_in_the_losses():
    head, predictor = build()
    x = pooled()
    x[0, 0, 0, 0] = float("nan")
    found = losses(head.train(), predictor, x, iteration=SECOND)
    assert all(torch.isnan(found[name]) for name in ("loss_selector", "loss_expert_cls"))


EXPERTS = {f"head.experts.{n}" for n in range(3)} | {"head.selector"}
DELEGATOR = {"head.delegator", "predictor.cls_score", "predictor.bbox_pred"}


@pytest.mark.parametrize("dtype", DTYPES, ids=["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("iteration", "freeze", "expected"),
    [(0, False, DELEGATOR), (SECOND, False, DELEGATOR | EXPERTS), (SECOND, True, EXPERTS)],
)
def test_gradients_in_mixed_precision_are_those_of_float32(iteration, freeze, expected, dtype):
    head, predictor = build(FREEZE_DELEGATOR=freeze)
    both = nn.ModuleDict({"head": head.train(), "predictor": predictor})
    held = []
    original = head._lesson

    def lesson(*args):  # whom a proposal is assigned to is a choice that rounding may change
        held.append(original(*args))
        return held[0]

    head._lesson = lesson
    exact = gradients(both, losses(head, predictor, iteration=iteration))
    with half(dtype):
        values = losses(head, predictor, iteration=iteration)
    assert all(value.dtype == torch.float32 for value in values.values())
    found = gradients(both, values)
    words = {".".join(name.split(".")[:2]) for name in found}
    assert words == {".".join(name.split(".")[:2]) for name in expected}
    assert all(any(n.startswith(name) for n in found) for name in expected)
    assert_close_gradients(found, exact, dtype)
    for each in held:  # not rounded either
        torch.testing.assert_close(each.expert_weights.sum(0).float(), torch.ones(3))
        assert float(each.selection_weights.sum()) == pytest.approx(1, abs=1e-6)
    with torch.autocast("cpu", dtype), torch.no_grad():
        assert head.eval().predict(pooled(), predictor).scores.isfinite().all()


def test_a_frozen_delegator_keeps_its_batch_norm():
    head, predictor = build(FREEZE_DELEGATOR=True, _NORM="BN", EXPERT_CONV_DIMS=[4])
    head.train()
    assert any("running_mean" in name for name in head.delegator.state_dict())

    def changed(iteration):
        before = {k: v.clone() for k, v in head.state_dict().items()}
        losses(head, predictor, iteration=iteration)
        after = head.state_dict()
        return {k.split(".")[0] for k, v in before.items() if not v.equal(after[k])}

    assert changed(SECOND - 1) == {"delegator"}
    assert changed(SECOND) == {"experts"}
    # Nor does it look at a batch's own: what it says of a proposal does not hang on the others.
    kept = head.delegator.convs[0].norm
    assert not kept.training
    head, predictor = build(_NORM="BN", EXPERT_CONV_DIMS=[4])
    head.train()
    assert changed(SECOND) == {"delegator", "experts"}


@pytest.mark.parametrize(
    ("keys", "reported"),
    [
        ({"EXPERTS": 0}, "EXPERTS must be at least 1, not 0"),
        ({"THRESHOLD": -0.5}, "COE.THRESHOLD must be between 0 and 1, not -0.5"),
        ({"ALPHA": [0.2, 1.2]}, "α must be two numbers between 0 and 1"),
        ({"ALPHA": [0.2]}, "α must be two numbers"),
        ({"START": -1}, "START must be at least 0, not -1"),
        ({"EXPERT_FC_DIMS": []}, "EXPERT_FC_DIMS must name at least one linear layer"),
        ({"_USE_SIGMOID_CE": True}, "which USE_SIGMOID_CE does not give"),
    ],
)
def test_settings_that_cannot_be(keys, reported):
    with pytest.raises(ConfigError, match=reported):
        build(**keys)


def test_every_image_counts():
    assert sum(map(len, LABELS)) == len(flat())
