"""The Hydra box head against Algorithm 1 and Eq. 7 proposal by proposal."""

import pytest
import torch
import torch.nn.functional as F
from boxes import (
    BACKGROUND,
    CLASSES,
    LABELS,
    NAMES,
    PARTITION,
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
from hypothesis import given, settings
from hypothesis import strategies as st
from mixed_precision import DTYPES, assert_close_gradients, gradients, half
from torch import nn

from divdr.errors import CheckpointError, ConfigError
from divdr.modeling.roi_heads import HydraBoxHead
from divdr.modeling.roi_heads.layers import BoxLayers

BRANCHES = 3


def spread(head, factor=30.0):
    """Gater's answers that differ from proposal to proposal."""
    with torch.no_grad():
        head.gater.predict.weight.mul_(factor)
    return head


def force(head, *branches):
    """The gater always ranks these first."""
    with torch.no_grad():
        head.gater.predict.weight.mul_(0.01)
        head.gater.predict.bias.zero_()
        for place, branch in enumerate(branches):
            head.gater.predict.bias[branch] = 10.0 - place


def chosen_for(head, maps, threshold):
    """Branches of one proposal, by the paper's text."""
    weights = head.gater(maps).softmax(1)[0].tolist()
    best = sorted(range(BRANCHES), key=lambda i: -weights[i])[: head.settings.top_k]
    return [i for i in best if weights[i] >= threshold] or best[:1]


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
@torch.no_grad()
def test_a_batch_gives_what_algorithm_1_gives_for_every_proposal(threshold):
    head, predictor = make(THRESHOLD=threshold)
    spread(head.eval())
    scores, deltas, ran = head.predict(pooled(40), predictor)
    counts = set()
    for row, x in enumerate(pooled(40)):
        maps = head.stem(x[None])
        chosen = chosen_for(head, maps, threshold)
        assert ran[row].nonzero()[:, 0].tolist() == sorted(chosen)
        features = head.combiner(sum(head.branches[i](maps) for i in chosen))
        expected = predictor(features)
        torch.testing.assert_close(scores[row], expected[0][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(deltas[row], expected[1][0], rtol=1e-4, atol=1e-5)
        counts.add(len(chosen))
    assert counts == {0.0: {2}, 0.3: {1, 2}, 1.0: {1}}[threshold]


@torch.no_grad()
def test_branches_run_on_the_proposals_that_chose_them_alone():
    head, predictor = make(TOP_K=1)
    force(head.eval(), 2)
    seen = count_rows(head.branches)
    head.predict(pooled(5), predictor)
    assert seen == [(2, 5)]
    spread(head)
    seen.clear()
    with torch.no_grad():
        head.gater.predict.weight.normal_(std=3)
    ran = head.predict(pooled(50), predictor).ran
    assert dict(seen) == {n: int(c) for n, c in enumerate(ran.sum(0)) if c}
    assert sum(dict(seen).values()) == 50
    seen.clear()
    scores, deltas, ran = head.predict(pooled(0), predictor)
    assert (scores.shape, deltas.shape, ran.shape) == ((0, 7), (0, 24), (0, 3))
    assert seen == []


@pytest.mark.parametrize("agnostic", [False, True])
def test_losses_against_a_loop_over_proposals(agnostic):
    head, predictor = make(
        _CLS_AGNOSTIC_BBOX_REG=agnostic, TRAIN_THRESHOLD=0.3, ENSEMBLE_WEIGHT=2.0
    )
    spread(head.train())
    with torch.no_grad():
        head.gater.predict.bias.copy_(torch.tensor([0.0, 0.3, -0.3]))
    found = losses(head, predictor)
    classes, boxes, gater = [], [], []
    own = {n: [] for n in range(BRANCHES)}
    for x, label in zip(pooled(), flat(), strict=True):
        maps = head.stem(x[None])
        chosen = chosen_for(head, maps, 0.3)
        features = head.combiner(sum(head.branches[i](maps) for i in chosen))
        scores, deltas = predictor(features)
        classes.append(F.cross_entropy(scores[0], label))
        boxes.append(deltas[0])
        if label == BACKGROUND:
            owners = chosen
        else:
            owners = [int(PARTITION[label])]
            gater.append(F.cross_entropy(head.gater(maps)[0], PARTITION[label]))
        for n in owners:
            logits = head.branch_heads[n](head.branches[n](maps))
            own[n].append(F.cross_entropy(logits[0], label))
    assert all(own.values())
    expected = {
        "loss_cls": 2.0 * torch.stack(classes).mean(),
        "loss_box_reg": box_errors(predictor, torch.stack(boxes), sampled()).sum() / len(classes),
        "loss_gater": 1.5 * torch.stack(gater).sum() / len(classes),
        "loss_branch": 0.05 * sum(torch.stack(terms).mean() for terms in own.values()),
    }
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "reached"),
    [
        (
            "loss_cls",
            {"stem", "branches.0", "branches.2", "combiner", "cls_score"},
        ),
        ("loss_box_reg", {"stem", "branches.0", "branches.2", "combiner", "bbox_pred"}),
        ("loss_gater", {"stem", "gater"}),
        # Classes 1 and 2 are of branch 1; background went to 0 and 2.
        (
            "loss_branch",
            {"stem", *(f"{part}.{n}" for n in range(3) for part in ("branches", "branch_heads"))},
        ),
    ],
)
def test_what_each_loss_reaches(name, reached):
    head, predictor = make()
    force(head.train(), 0, 2)
    losses(head, predictor, labels=[[1, 2, 6], [2, 6, 1]])[name].backward()
    names = touched(head) | {n for n, p in predictor.named_children() if p.weight.grad is not None}
    assert names == reached


def test_a_branch_that_no_proposal_needs_has_no_gradient():
    head, predictor = make()
    force(head.train(), 0, 2)
    seen = count_rows(head.branches)
    sum(losses(head, predictor, labels=[[3, 6], [0, 6]]).values()).backward()
    assert {n for n, _ in seen} == {0, 2}
    assert all(p.grad is None for p in head.branches[1].parameters())
    assert all(p.grad is None for p in head.branch_heads[1].parameters())


@pytest.mark.parametrize("labels", [[[6, 6], [6]], [[], []]])
def test_batches_without_objects_or_without_proposals(labels):
    head, predictor = make()
    found = losses(head.train(), predictor, labels=labels)
    assert found["loss_gater"] == 0
    sum(found.values()).backward()
    assert all(torch.isfinite(value) for value in found.values())


@torch.no_grad()
def test_embeddings_are_of_all_branches_whatever_the_gater_says():
    head, _ = make(TOP_K=1)
    force(head.eval(), 2)
    maps = head.stem(pooled())
    expected = head.combiner(sum(branch(maps) for branch in head.branches))
    torch.testing.assert_close(head.embed(pooled()), expected)


def test_layers_of_the_settings():
    keys = {"STEM_CONV_DIMS": [5, 6], "STEM_KERNEL": 3, "BRANCH_CONV_DIMS": [4, 3]}
    head, _ = make(_NORM="BN", **keys)
    for part, channels, kernel in ((head.stem, [4, 5, 6], 3), (head.branches[1], [6, 4, 3], 3)):
        found = [m for m in part.convs if isinstance(m, nn.Conv2d)]
        assert [m.in_channels for m in found] + [found[-1].out_channels] == channels
        assert all(m.kernel_size == (kernel, kernel) for m in found)
        assert all(isinstance(m.norm, nn.BatchNorm2d) and m.bias is None for m in found)
    plain = [m for m in make(**keys)[0].modules() if isinstance(m, nn.Conv2d)]
    assert all(m.bias is not None and getattr(m, "norm", None) is None for m in plain)


def test_linear_layers_start_as_those_of_detectron2():
    head, _ = make(BRANCH_FC_DIMS=[90, 80])
    layers = [m for b in head.branches for m in b.fcs if isinstance(m, nn.Linear)]
    assert len(layers) == 6
    for layer in (*layers, head.combiner[0]):  # uniform, of variance 1 / fan in
        assert layer.weight.std().item() == pytest.approx(layer.in_features**-0.5, rel=0.05)
        assert not layer.bias.any()


@torch.no_grad()
def test_multiply_adds_by_hand():
    head, predictor = make()
    cost = head.eval().cost(predictor)
    # Stem 4 → 5 channels on 3 × 3 and ReLU; the gater reads 5 × 9 numbers for their mean, 5 → 8 and
    # ReLU, reads 8 again, 8 → 3; combiner 6 → 6 and ReLU; predictor 6 → 7 and 6 → 24.
    shared = (4 * 5 * 9 + 5 * 9) + (5 * 9 + 5 * 8 + 8 + 8 + 8 * 3) + (6 * 6 + 6) + 6 * (7 + 24)
    branch = 5 * 9 * 7 + 7 + 7 * 6 + 6
    assert cost.shared == shared
    assert cost.experts == (branch,) * 3


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=5))
@torch.no_grad()
def test_a_higher_threshold_never_costs_more(thresholds):
    torch.manual_seed(0)
    head, predictor = make(TOP_K=3)
    spread(head.eval())
    cost = head.cost(predictor)
    totals = []
    for threshold in sorted(thresholds):
        head.threshold = threshold
        totals.append(float(cost.of(head.predict(pooled(30), predictor).ran).sum()))
    assert totals == sorted(totals, reverse=True)


@torch.no_grad()
def test_weights_and_partition_travel_without_the_extra_heads():
    head, predictor = make()
    lean = HydraBoxHead(config(BRANCH_WEIGHT=0.0), head.in_shape)
    assert not lean.classes.known
    kept = {k: v for k, v in head.state_dict().items() if not k.startswith("branch_heads")}
    lean.load_state_dict(kept)
    assert lean.classes.partition.equal(PARTITION)
    both = [h.eval().predict(pooled(), predictor) for h in (head, lean)]
    assert all(a.equal(b) for a, b in zip(*both, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=["float16", "bfloat16"])
def test_gradients_in_mixed_precision_are_those_of_float32(dtype):
    # All branches run: no choice can hang on rounding.
    head, predictor = make(TOP_K=3)
    both = nn.ModuleDict({"head": head.train(), "predictor": predictor})
    exact = gradients(both, losses(head, predictor))
    numbered = {f"head.{part}.{n}" for part in ("branches", "branch_heads") for n in range(3)}
    expected = {f"head.{part}" for part in ("stem", "gater", "combiner")} | numbered
    expected |= {"predictor.cls_score", "predictor.bbox_pred"}
    with half(dtype):
        values = losses(head, predictor)
    assert all(value.dtype == torch.float32 for value in values.values())
    found = gradients(both, values)
    assert {name for name in expected if any(n.startswith(name) for n in found)} == expected
    assert_close_gradients(found, exact, dtype)
    with torch.autocast("cpu", dtype), torch.no_grad():
        assert head.eval().predict(pooled(), predictor).scores.isfinite().all()


def test_partitions_that_cannot_be():
    head, predictor = make()
    head.classes.check(NAMES)
    with pytest.raises(CheckpointError, match="another data set: class 3 is not 'cat' there"):
        head.classes.check([*NAMES[:3], "cat", *NAMES[4:]])
    with pytest.raises(CheckpointError, match="is of 6 classes; the data set has 5"):
        head.classes.check(NAMES[:5])
    with pytest.raises(ConfigError, match="is of 5 classes; the model has 6"):
        head.classes.set(PARTITION[:5], NAMES[:5])
    with pytest.raises(ConfigError, match="names branch 3; there are 3"):
        head.classes.set(PARTITION + 1, NAMES)
    unset = HydraBoxHead(config(), head.in_shape)
    with pytest.raises(ConfigError, match="no class partition yet"):
        losses(unset, predictor)


@pytest.mark.parametrize(
    ("keys", "reported"),
    [
        ({"BRANCHES": CLASSES + 1}, "7 branches cannot share 6 classes"),
        ({"BRANCHES": 0}, "BRANCHES must be at least 1, not 0"),
        ({"TOP_K": 4}, "TOP_K must be between 1 and the 3 branches, not 4"),
        ({"THRESHOLD": 1.5}, "HYDRA.THRESHOLD must be between 0 and 1, not 1.5"),
        ({"TRAIN_THRESHOLD": -0.1}, "TRAIN_THRESHOLD must be between 0 and 1, not -0.1"),
        ({"BRANCH_FC_DIMS": []}, "BRANCH_FC_DIMS must name at least one linear layer"),
    ],
)
def test_settings_that_cannot_be(keys, reported):
    with pytest.raises(ConfigError, match=reported):
        make(**keys)


def test_labels_cover_every_branch():
    assert {int(PARTITION[label]) for own in LABELS for label in own if label < CLASSES} == {
        0,
        1,
        2,
    }


def test_a_branch_with_one_proposal_of_one_pixel_trains():
    layers = BoxLayers(ShapeSpec(channels=2, height=1, width=1), [3], kernel=1, norm="BN")
    convolution = layers.convs[0]
    assert set(convolution.state_dict()) == {
        "weight",
        *(f"norm.{n}" for n in ("weight", "bias", "running_mean", "running_var")),
        "norm.num_batches_tracked",
    }
    convolution.norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    x = torch.tensor([0.5, -2.0]).view(1, 2, 1, 1)
    # No variance exists: the running statistics, whose variance is 1, serve, and stay.
    wanted = (convolution.weight[:, :, 0, 0] @ x.flatten() - torch.tensor([1.0, 2.0, 3.0])).relu()
    torch.testing.assert_close(layers(x).flatten(), wanted, rtol=1e-4, atol=1e-5)
    assert convolution.norm.num_batches_tracked == 0
    layers(x.expand(2, -1, -1, -1) * torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))
    assert convolution.norm.num_batches_tracked == 1


@pytest.mark.parametrize("norm", ["SyncBN", "naiveSyncBN_N"])
def test_normalisation_that_waits_for_other_processes_is_refused(norm):
    shape = ShapeSpec(channels=4, height=3, width=3)
    BoxLayers(shape, [8], norm="BN")
    with pytest.raises(ConfigError, match='use "BN" or "GN"'):
        BoxLayers(shape, [8], norm=norm)
