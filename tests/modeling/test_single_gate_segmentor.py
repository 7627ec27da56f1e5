"""The single-gated segmentation head against the paper's equations, image by image and window by
window."""

import pytest
import torch
import torch.nn.functional as F
from maps import (
    CLASSES,
    HEADS,
    IGNORE,
    SIZE,
    at,
    build,
    embeddings,
    features,
    in_stage,
    labels,
)
from mixed_precision import DTYPES, assert_close_gradients, gradients, half
from torch import nn

from divdr.errors import ConfigError
from divdr.modeling.segmentors.windows import Windows


def slices(size, window):
    """Windows of the finest map of an image, by corners in its cells; the last reach beyond."""
    if not window:
        return [(0, 0, size[0], size[1])]
    length = 4 * window
    return [
        (top, left, length, length)
        for top in range(0, size[0], length)
        for left in range(0, size[1], length)
    ]


def cut(maps, place, halo):
    """The maps of a window with so many cells of the coarsest around it, 0 beyond the image."""
    top, left, height, width = place
    found = {}
    finest = next(iter(maps.values())).shape[-1]
    for name, values in maps.items():
        ratio = round(finest / values.shape[-1])  # cells of the finest for each of this map
        edge = 4 // ratio * halo
        padded = F.pad(values, (99,) * 4)
        start = 99 + top // ratio - edge, 99 + left // ratio - edge
        found[name] = padded[
            ...,
            start[0] : start[0] + height // ratio + 2 * edge,
            start[1] : start[1] + width // ratio + 2 * edge,
        ]
    return found


def seen_by(base, maps):
    """Logits of a head, and what its predictor sees."""
    seen = []
    handle = base.predictor.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    logits = base(maps)[0]
    handle.remove()
    return logits, seen[0]


def naive(head, maps):
    """Logits of one image, and the experts of each of its windows."""
    window, halo = head.settings.window, head.settings.halo
    size = next(iter(maps.values())).shape[-2:]
    base, seen = seen_by(head.base, maps)
    logits = base.clone()
    chosen = []
    for place in slices(size, window):
        top, left, height, width = place
        z = seen[0, :, top : top + height, left : left + width].mean((1, 2))
        inside = slice(4 * top, 4 * (top + height)), slice(4 * left, 4 * (left + width))
        part = base[0][:, inside[0], inside[1]]
        sure = part.softmax(0).amax(0).mean()
        g = head.gate.linear(z).softmax(0)
        if head.settings.exit == "anytime":
            needed = [k for k in range(3) if g[k] * (1 - sure) >= head.threshold]
        else:
            never = head.settings.exit == "none"
            needed = [int(g.argmax())] if never or sure <= head.threshold else []
        chosen.append(needed)
        mixed = 0
        for k in needed:
            around = halo if window else 0
            own = head.experts[k](cut(maps, place, around))[0][0]
            edge = 16 * around
            own = own[:, edge : own.shape[1] - edge, edge : own.shape[2] - edge]
            own = own[:, : part.shape[1], : part.shape[2]].softmax(0)
            if head.settings.ensembler == "bagging":
                own = (own + part.softmax(0)) / 2
            share = g[k] / sum(g[n] for n in needed) if head.settings.exit == "anytime" else 1
            mixed = mixed + share * own
        if needed:
            logits[0][:, inside[0], inside[1]] = mixed.log()
    return logits[0], chosen


def count_rows(experts):
    seen = {}
    for number, expert in enumerate(experts):
        expert.register_forward_hook(
            lambda m, args, out, n=number: seen.update({n: len(next(iter(args[0].values())))})
        )
    return seen


def some_exit(head, maps):
    """A threshold that about half of the rows pass."""
    base = head.base(maps)[0].softmax(1).amax(1).mean((1, 2))
    if head.settings.exit == "confidence":
        return float(base.quantile(0.5))
    z = embeddings(head, maps)
    alpha = head.gate.linear(z).softmax(1) * (1 - base)[:, None]
    return float(alpha.amax(1).quantile(0.4))


@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("base", HEADS)
@pytest.mark.parametrize(
    ("how", "ensembler"),
    [("none", "bagging"), ("confidence", "bagging"), ("anytime", "bagging"), ("anytime", "none")],
)
@torch.no_grad()
def test_predictions_row_by_row(base, window, how, ensembler):
    head = build(base, WINDOW=window, EXIT=how, ENSEMBLER=ensembler)
    maps = features(base, count=5)
    head.threshold = some_exit(head, maps)
    seen = count_rows(head.experts)
    found, losses = head(maps)
    ran = dict(seen)
    assert losses == {}
    chosen = []
    for image in range(5):
        logits, own = naive(head, at(maps, slice(image, image + 1)))
        torch.testing.assert_close(found[image], logits, rtol=1e-3, atol=1e-4)
        chosen.append(own)
    counts = [[sum(k in needed for needed in own) for k in range(3)] for own in chosen]
    each = 9 if window else 1
    torch.testing.assert_close(head.ran, torch.tensor(counts).double() / each)
    totals = torch.tensor(counts).sum(0).tolist()
    assert ran == {k: n for k, n in enumerate(totals) if n}
    lengths = {len(needed) for own in chosen for needed in own}
    assert lengths == {1} if how == "none" else {0, 1} <= lengths


@pytest.mark.parametrize("window", [0, 2])
@torch.no_grad()
def test_rows_that_exit_are_bit_by_bit_the_bases(window):
    head = build(WINDOW=window)
    maps = features(count=6)
    head.threshold = some_exit(head, maps)
    found, base = head(maps)[0], head.base(maps)[0]
    length = 32 if window else 96
    same = 0
    for image in range(6):
        for top in range(0, 80, length):
            for left in range(0, 96, length):
                places = image, slice(None), slice(top, top + length), slice(left, left + length)
                same += found[places].equal(base[places])
    rows = 6 * (9 if window else 1)
    assert same == rows - round(float(head.ran.sum()) * rows / 6)
    assert 0 < same < rows
    head.threshold = 0.0
    assert head(maps)[0].equal(base)
    head.threshold = 1.0
    head.gate.fitted.fill_(False)
    assert head(maps)[0].equal(base)
    assert not head.ran.any()


@pytest.mark.parametrize("size", [(1, 1), (3, 30), (17, 9), (31, 16)])
@torch.no_grad()
def test_windows_that_do_not_divide_the_image(size):
    """Maps of a stem without padding: each is half as long as the one before, rounded up."""
    head = build(WINDOW=2, HALO=1, EXIT="none")
    maps = features(count=2, size=size)
    found = head(maps)[0]
    assert found.shape == (2, CLASSES, 4 * size[0], 4 * size[1])
    rows = Windows.over(maps, head.strides, 2, 1)
    assert rows.each == -(-size[0] // 8) * -(-size[1] // 8)
    expected = torch.stack(
        [ends_ragged(head, at(maps, slice(image, image + 1))) for image in range(2)]
    )
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def ends_ragged(head, maps):
    """As :func:`naive`, of maps whose coarsest may stand for less than it covers."""
    height, width = maps["res2"].shape[-2:]
    whole = {
        name: F.pad(values, (0, 40 - values.shape[-1], 0, 40 - values.shape[-2]))
        for name, values in maps.items()
    }
    base, seen = seen_by(head.base, maps)
    logits = base.clone()
    for top, left, *_ in slices((height, width), 2):
        z = seen[0, :, top : top + 8, left : left + 8].mean((1, 2))
        k = int(head.gate.linear(z).argmax())
        parts = {}
        for name, ratio in (("res2", 4), ("res3", 2), ("res4", 1)):
            padded = F.pad(whole[name], (99,) * 4)
            y, x = (99 + (each // 4 - 1) * ratio for each in (top, left))
            parts[name] = padded[..., y : y + 4 * ratio, x : x + 4 * ratio]
        own = head.experts[k](parts)[0][0, :, 16:48, 16:48]
        place = logits[0, :, 4 * top : 4 * top + 32, 4 * left : 4 * left + 32]
        own = own[:, : place.shape[1], : place.shape[2]]
        place.copy_(((own.softmax(0) + place.softmax(0)) / 2).log())
    return logits[0]


@torch.no_grad()
def test_experts_start_as_the_base_and_then_change_nothing():
    head = build(EXIT="none")
    head.copy_base(nn.Identity())
    maps = features()
    torch.testing.assert_close(head(maps)[0], head.base(maps)[0].log_softmax(1))
    base = {id(p) for p in head.base.parameters()}
    assert not base & {id(p) for p in head.experts.parameters()}


# Cost


def decoder_macs(size):
    """DynamicRoutingDecoder by hand: 1 × 1 convolutions, BatchNorm (2), ReLU; 3 × 3 to classes."""
    fine = size[0] * size[1]
    middle, coarse = fine // 4, fine // 16
    merged = fine * (4 * 4 + 3 * 4) + middle * (8 * 4 + 3 * 4) + coarse * (16 * 8 + 3 * 8)
    return merged + fine * 4 * 9 * CLASSES


@pytest.mark.parametrize("window", [0, 2])
@torch.no_grad()
def test_multiply_adds_by_hand(window):
    head = build(WINDOW=window, HALO=1)
    maps = features()
    shapes = {name: tuple(values.shape[1:]) for name, values in maps.items()}
    cost = head.cost(shapes)
    rows = 9 if window else 1
    assert cost.shared == decoder_macs(SIZE) + rows * 4 * 3  # and the gate, 4 → 3
    assert cost.experts == (decoder_macs((16, 16) if window else SIZE),) * 3
    head.threshold = some_exit(head, maps)
    head(maps)
    expected = cost.shared + rows * head.ran.sum(1) * cost.experts[0]
    torch.testing.assert_close(head.macs, expected)
    assert len(set(head.macs.tolist())) > 1


# Losses


def row_labels(targets, window):
    """Labels of each window, one after the other; none beyond the image."""
    for image in targets:
        for top, left, height, width in slices(SIZE, window):
            own = image[4 * top : 4 * (top + height), 4 * left : 4 * (left + width)]
            missing = (0, 4 * width - own.shape[1], 0, 4 * height - own.shape[0])
            yield F.pad(own, missing, value=IGNORE)


def row_embeddings(head, maps, window):
    seen = seen_by(head.base.eval(), maps)[1]
    return [
        image[:, top : top + height, left : left + width].mean((1, 2))
        for image in seen
        for top, left, height, width in slices(SIZE, window)
    ]


def soft(head, z):
    squares = ((z - head.gate.centres) ** 2).sum(1)
    return (-squares / head.gate.temperature).softmax(0)


def blank(targets):
    """The first image without labels, and the upper left window of the second."""
    targets = targets.clone()
    targets[0] = IGNORE
    targets[1, :32, :32] = IGNORE
    return targets


@pytest.mark.parametrize("window", [0, 2])
@torch.no_grad()
def test_the_gates_loss_row_by_row(window):
    head = in_stage(build(WINDOW=window), "gate")
    maps, targets = features(), blank(labels())
    logits, found = head(maps, targets)
    assert logits is None
    assert set(found) == {"loss_gate"}
    own = [  # a row without labels may be padding
        torch.xlogy(soft(head, z), soft(head, z)).sum()
        - soft(head, z) @ head.gate.linear(z).log_softmax(0)
        for z, y in zip(
            row_embeddings(head, maps, window), row_labels(targets, window), strict=True
        )
        if (y != IGNORE).any()
    ]
    assert len(own) == (3 if not window else 4 * 9 - 10)
    torch.testing.assert_close(found["loss_gate"], torch.stack(own).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("window", "floor"), [(0, 0.0), (0, 0.3), (2, 0.3)])
@pytest.mark.parametrize("base", ["DynamicRoutingDecoder", "SemSegFPNHead"])
@torch.no_grad()
def test_the_experts_losses_row_by_row(base, window, floor):
    head = build(base, WINDOW=window, FLOOR=floor)
    maps, targets = features(base), blank(labels())
    in_stage(head, "experts")
    for part in head.modules():  # so that rows do not depend on each other
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
    found = head(maps, targets)[1]
    assert set(found) == {"loss_experts"}
    total = 0
    head.eval()
    places = [(image, place) for image in range(4) for place in slices(SIZE, window)]
    z = row_embeddings(head, maps, window)
    for k, expert in enumerate(head.experts):
        losses, weights = [], []
        rows = zip(places, z, row_labels(targets, window), strict=True)
        for (image, place), own, y in rows:
            known = (y != IGNORE).float().mean()
            if not known:
                continue
            around = 1 if window else 0
            logits = expert(cut(at(maps, slice(image, image + 1)), place, around))[0]
            edge = 16 * around
            logits = logits[..., edge : logits.shape[2] - edge, edge : logits.shape[3] - edge]
            losses.append(F.cross_entropy(logits, y[None], ignore_index=IGNORE))
            weights.append(known * soft(head, own)[k].clamp(floor, 1))
        losses, weights = torch.stack(losses), torch.stack(weights)
        total = total + (weights * losses).sum() / weights.sum()
    torch.testing.assert_close(found["loss_experts"], total, rtol=1e-4, atol=1e-5)


def moved_by(head, stage):
    """Names of what gradients reach, and of buffers that change, in a stage."""
    before = {name: value.clone() for name, value in head.named_buffers()}
    maps = {name: values.requires_grad_() for name, values in features(head_name(head)).items()}
    sum(in_stage(head, stage)(maps, labels())[1].values()).backward()
    assert all(values.grad is None for values in maps.values())
    reached = {n for n, p in head.named_parameters() if p.grad is not None and p.grad.any()}
    changed = {n for n, value in head.named_buffers() if not value.equal(before[n])}
    depth = {"base": 1, "gate": 1, "experts": 2}
    return tuple(
        {".".join(n.split(".")[: depth[n.split(".")[0]]]) for n in names}
        for names in (reached, changed)
    )


def head_name(head):
    return type(head.base).__name__


@pytest.mark.parametrize("base", HEADS)
def test_what_each_stage_reaches(base):
    experts = {"experts.0", "experts.1", "experts.2"}
    assert moved_by(build(base), "gate") == ({"gate"}, set())
    norms = set() if base == "SemSegFPNHead" else experts  # GroupNorm has no statistics
    assert moved_by(build(base), "experts") == (experts, norms)


@pytest.mark.parametrize("stage", ["gate", "experts"])
@pytest.mark.parametrize("window", [0, 2])
def test_images_without_labels(stage, window):
    head = in_stage(build(WINDOW=window), stage)
    losses = head(features(), torch.full_like(labels(), IGNORE))[1]
    sum(losses.values()).backward()
    assert all(value == 0 for value in losses.values())
    assert all(p.grad is None or not p.grad.any() for p in head.parameters())


@pytest.mark.parametrize("window", [0, 2])
def test_clusters_are_made_of_rows_with_labels(window):
    head = build(WINDOW=window)
    head.gate.fitted.fill_(False)
    maps, targets = features(count=8, seed=6), labels(count=8)
    targets[3] = IGNORE

    def passes():
        for start in range(0, 8, 2):
            images = slice(start, start + 2)
            assert head.train()(at(maps, images), targets[images]) == (None, {})
            yield

    head.begin(head.stages[0], passes)
    with torch.no_grad():
        z = torch.stack(row_embeddings(head, maps, window)).double()
    each = 9 if window else 1
    z = torch.cat([z[: 3 * each], z[4 * each :]])
    centres = head.gate.centres.double()
    squares = ((z[:, None] - centres) ** 2).sum(2)
    for k in range(3):
        torch.testing.assert_close(z[squares.argmin(1) == k].mean(0), centres[k], rtol=0, atol=1e-5)
    nearest = squares.amin(1).mean()
    torch.testing.assert_close(head.gate.temperature.double(), nearest, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float16", "bfloat16"])
@pytest.mark.parametrize(("stage", "window"), [("gate", 0), ("experts", 0), ("experts", 2)])
def test_gradients_in_mixed_precision_are_those_of_float32(stage, window, dtype):
    head = in_stage(build(WINDOW=window), stage)
    exact = gradients(head, head(features(), labels())[1])
    with half(dtype):
        values = head(features(), labels())[1]
    assert all(value.dtype == torch.float32 for value in values.values())
    found = gradients(head, values)
    assert {name.split(".")[0] for name in found} == {stage}
    assert_close_gradients(found, exact, dtype)
    head.eval().threshold = 1.0
    with torch.autocast("cpu", dtype), torch.no_grad():
        logits = head(features())[0]
    assert logits.isfinite().all()
    assert head.ran.any()


class Bare(nn.Module):
    """A head whose last layer has another name."""

    def __init__(self):
        super().__init__()
        self.last = nn.Conv2d(1, 1, 1)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"EXPERTS": 0}, "SINGLE_GATE.EXPERTS must be at least 1, not 0"),
        ({"WINDOW": -1}, "WINDOW must be at least 0, not -1"),
        ({"HALO": -1}, "HALO must be at least 0, not -1"),
        ({"ENSEMBLER": "top2"}, "ENSEMBLER must be one of bagging, none, not 'top2'"),
    ],
)
def test_settings_that_cannot_be(keys, told):
    with pytest.raises(ConfigError, match=told):
        build(**keys)


def test_windows_under_pooling_of_a_fixed_size():
    with pytest.raises(ConfigError, match=r"pools over maps of the training crops.*WINDOW 0"):
        build("DeepLabV3PlusHead", crop=True, WINDOW=2)
    build("DeepLabV3PlusHead", crop=True, WINDOW=0)


def test_a_head_without_predictor():
    head = build()
    with pytest.raises(ConfigError, match="Bare has no convolution called predictor"):
        type(head)(base=Bare(), strides={}, experts=1, settings=head.settings)
