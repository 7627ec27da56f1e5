"""Collaboration of Experts: early termination, both stages' losses and what they reach."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from divdr.errors import ConfigError, DataError
from divdr.moe import (
    Collaboration,
    CollaborationSettings,
    Delegator,
    Distillation,
    ResNetParts,
    Stage,
    StageClassifier,
    TeachingSettings,
    at_thresholds,
    named_classifier,
    num_parameters,
    teach,
    threshold_curve,
    without_last_linear,
)

CLASSES = 5


def network(channels=4):
    parts = ResNetParts(channels=channels)
    stem = parts.stem()
    branch = parts.branch(stem.out_channels)
    return StageClassifier(stem, branch, branch.out_channels, CLASSES)


def make(experts=3, subtasks=1, *, progress=0.0, delegator_share=None, **settings):
    torch.manual_seed(0)
    extractor, width = without_last_linear(network(2))
    made = Collaboration(
        Delegator(extractor, width, CLASSES, experts, subtasks),
        [network(4 + k % 2) for k in range(experts)],
        CLASSES,
        CollaborationSettings(**settings),
        delegator_share=delegator_share,
    )
    made.progress = progress
    made.has_delegator.fill_(subtasks > 1)
    return made


def images(count=8, seed=1):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


LABELS = torch.arange(8) % CLASSES


def spread(made, factor=20.0):
    """A delegator whose answers differ from image to image."""
    first = made.delegator
    with torch.no_grad():
        features = first.extractor.eval()(images(40)).mean(0)
        for head in (first.expert_selector, first.subtask_selector, first.task_predictor):
            if head is not None:
                head.weight.mul_(factor)
                head.bias.copy_(-head.weight @ features)
    return made


def touched(made):
    names = set()
    for name, parameter in made.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.abs().sum() > 0
            names.add(".".join(name.split(".")[:2]))
    return names


def still(made):
    """BatchNorm by its own statistics, so that no value depends on the rest of the batch."""
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    return made


@torch.no_grad()
def test_a_batch_gives_what_single_images_give():
    made = spread(make()).eval()
    x = images()
    sure = made.delegator(x).rough.softmax(1).amax(1)
    made.threshold = sure.median().item()  # ends early for half of them but one
    prediction = made(x)
    for index, image in enumerate(x):
        seen = made.delegator(image[None])
        expected, ran = seen.rough, []
        if not seen.rough.softmax(1).max() > made.threshold:
            ran = [int(seen.selection.argmax())]
            expected = made.experts[ran[0]](image[None])
        assert prediction.ran[index].nonzero()[:, 0].tolist() == ran
        torch.testing.assert_close(prediction.logits[index], expected[0], rtol=1e-4, atol=1e-5)
    assert prediction.ran.any(1).sum() == 4


@torch.no_grad()
def test_experts_that_nobody_needs_do_not_run():
    made = spread(make()).eval()
    seen = []
    for number, expert in enumerate(made.experts):
        expert.register_forward_hook(lambda m, args, out, n=number: seen.append((n, len(args[0]))))
    x = images()
    made.threshold = 1.0
    ran = made(x).ran
    assert ran.sum(1).tolist() == [1] * 8
    assert seen == [(n, c) for n, c in enumerate(ran.sum(0).tolist()) if c]
    assert len(seen) > 1
    seen.clear()
    made.threshold = 0.0
    assert not made(x).ran.any()
    assert seen == []
    assert made(images(0)).logits.shape == (0, CLASSES)


def test_the_first_stage_reaches_extractor_and_task_predictor():
    made = make(delegator_share=0.5, progress=0.49).train()
    losses = made.losses(images(), LABELS)
    torch.testing.assert_close(
        losses["loss_rough"], F.cross_entropy(made.delegator(images()).rough, LABELS)
    )
    losses["loss_rough"].backward()
    assert touched(made) == {"delegator.extractor", "delegator.task_predictor"}
    assert set(losses) == {"loss_rough"}


def test_the_second_stage_fixes_them_and_reaches_selector_and_experts():
    made = make(delegator_share=0.5, progress=0.5).train()
    before = {k: v.clone() for k, v in made.delegator.extractor.state_dict().items()}
    made.losses(images(), LABELS)["loss_selection"].backward()
    assert touched(made) == {"delegator.expert_selector"}
    made.zero_grad()
    made.losses(images(), LABELS)["loss_experts"].backward()
    for parameter in made.delegator.expert_selector.parameters():
        assert not parameter.grad.any()
        parameter.grad = None
    assert touched(made) == {"experts.0", "experts.1", "experts.2"}
    # BatchNorm's statistics stay as well.
    after = made.delegator.extractor.state_dict()
    assert all(v.equal(before[k]) for k, v in after.items())


def test_values_of_the_second_stage():
    made = still(spread(make(delegator_share=0.25, progress=0.625, selection_weight=0.6)).train())
    assert made.alpha == pytest.approx(0.5)  # half of the way from 0.2 to 0.8
    x = images()
    losses = made.losses(x, LABELS)
    with torch.no_grad():
        selection = made.delegator.eval()(x).selection
        outputs = [expert(x) for expert in made.experts]
        tcp = torch.stack([o.softmax(1)[range(8), LABELS] for o in outputs], 1)
        lesson = teach(tcp, selection.softmax(1), 0.5, TeachingSettings())
        chosen = experts = 0.0
        for j in range(8):
            label = lesson.labels[j]
            chosen -= lesson.selection_weights[j] * selection[j].log_softmax(0)[label]
            for k in range(3):
                loss = -outputs[k][j].log_softmax(0)[LABELS[j]]
                experts += lesson.expert_weights[j, k] * loss
    assert losses["loss_selection"].item() == pytest.approx(0.6 * chosen.item(), rel=1e-4)
    assert losses["loss_experts"].item() == pytest.approx(experts.item(), rel=1e-4)


@pytest.mark.parametrize("selection", ["random", "category"])
def test_experts_by_the_class_that_the_delegator_sees(selection):
    made = spread(make(selection=selection, delegator_share=0.5, progress=0.75)).train()
    x, labels = images(40), torch.arange(40) % CLASSES
    read = []
    made.begin(Stage("delegator", 0.0), lambda: pytest.fail("nothing is chosen yet"))
    for _ in range(2):  # once is enough
        made.begin(Stage("experts", 0.5), lambda: read.append(1) or [(x, labels)])
    assert len(read) == (selection == "category")
    assert made.partition.bincount().tolist() == [2, 2, 1]
    still(made)
    x, labels = images(), LABELS
    losses = made.losses(x, labels)
    assert set(losses) == {"loss_experts"}
    expected = 0.0
    with torch.no_grad():
        own = made.partition[made.delegator.eval()(x).rough.argmax(1)]
        for k, expert in enumerate(made.experts):
            # α 0.5 between 0.2 and 0.8.
            bar = 0.5 / 3 + 0.5 * (own == k).float()
            each = F.cross_entropy(expert(x), labels, reduction="none")
            expected += (bar / bar.sum() * each).sum().item()
    assert losses["loss_experts"].item() == pytest.approx(expected, rel=1e-4)
    losses["loss_experts"].backward()
    assert touched_with_values(made) == {"experts.0", "experts.1", "experts.2"}
    made.eval()
    made.threshold = 1.0
    assert made(x).ran.long().argmax(1).tolist() == own.tolist()
    assert at_thresholds(made, x, [1.0])[0].ran.equal(made(x).ran)
    assert "partition" in made.state_dict()
    assert "partition" not in make().state_dict()


def touched_with_values(made):
    return {
        ".".join(name.split(".")[:2])
        for name, parameter in made.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }


def test_a_selector_that_is_trained_directly_scales_the_losses():
    made = still(spread(make(selection="direct", delegator_share=0.0, progress=0.5)).train())
    x = images()
    losses = made.losses(x, LABELS)
    with torch.no_grad():
        p = made.delegator.eval()(x).selection.softmax(1)
        each = [F.cross_entropy(e(x), LABELS, reduction="none") for e in made.experts]
        expected = sum((p[:, k] * each[k]).sum() for k in range(3)) / 8
    assert losses["loss_experts"].item() == pytest.approx(expected.item(), rel=1e-4)
    losses["loss_experts"].backward()
    assert touched_with_values(made) == {
        "delegator.expert_selector",
        *(f"experts.{k}" for k in range(3)),
    }
    # A step moves it to experts that lose less.
    before = (p * torch.stack(each, 1)).sum()
    with torch.no_grad():
        for parameter in made.delegator.expert_selector.parameters():
            parameter -= 0.01 * parameter.grad
        p = made.delegator(x).selection.softmax(1)
    assert (p * torch.stack(each, 1)).sum() < before
    with pytest.raises(ConfigError, match='SELECTION "direct" knows no SUBTASKS'):
        make(4, 2, selection="direct")


def test_an_expert_without_a_sample_leaves_training_whole():
    # With α 1 the second expert's loss has no weight anywhere: one sample less than experts.
    made = make(2, alpha=(1.0, 1.0), wgm="free", progress=0.9).train()
    with torch.no_grad():
        made.delegator.expert_selector.bias.copy_(torch.tensor([50.0, -50.0]))
    sum(made.losses(images(), LABELS).values()).backward()
    assert sum(p.grad.abs().sum() for p in made.experts[0].parameters()) > 0
    assert all(not p.grad.any() for p in made.experts[1].parameters())
    losses = make(progress=0.9).train().losses(images(2), LABELS[:2])  # three experts
    assert [value.item() for value in losses.values()] == [0.0, 0.0]
    sum(losses.values()).backward()
    losses = make(progress=0.9).train().losses(images(0), LABELS[:0])
    sum(losses.values()).backward()


def test_subtasks_train_on_their_own_samples():
    made = still(spread(make(4, 2, delegator_share=0.0, progress=0.5)).train())
    x = images()
    seen = made.delegator.eval()(x)
    groups = seen.subtask.argmax(1)
    assert 2 <= groups.sum() <= 6
    counts = []
    for number, expert in enumerate(made.experts):
        expert.register_forward_hook(
            lambda m, args, out, n=number: counts.append((n, len(args[0])))
        )
    losses = made.losses(x, LABELS)
    ones = int(groups.sum())
    assert counts == [(0, 8 - ones), (1, 8 - ones), (2, ones), (3, ones)]
    chosen = experts = 0.0
    with torch.no_grad():
        for subtask in range(2):
            rows = (groups == subtask).nonzero()[:, 0]
            labels, selection = LABELS[rows], seen.selection[rows, 2 * subtask : 2 * subtask + 2]
            outputs = [e(x[rows]) for e in made.experts[2 * subtask : 2 * subtask + 2]]
            tcp = torch.stack([o.softmax(1).gather(1, labels[:, None])[:, 0] for o in outputs], 1)
            lesson = teach(tcp, selection.softmax(1), made.alpha, TeachingSettings())
            each = F.cross_entropy(selection, lesson.labels, reduction="none")
            chosen += (lesson.selection_weights * each).sum().item()
            for k, output in enumerate(outputs):
                each = F.cross_entropy(output, labels, reduction="none")
                experts += (lesson.expert_weights[:, k] * each).sum().item()
    assert losses["loss_selection"].item() == pytest.approx(0.8 * chosen, rel=1e-4)
    assert losses["loss_experts"].item() == pytest.approx(experts, rel=1e-4)
    sum(losses.values()).backward()
    assert "delegator.subtask_selector" not in touched(made)


@torch.no_grad()
def test_subtask_first_then_one_of_its_experts():
    made = spread(make(6, 2, threshold=1.0)).eval()
    x = images(20)
    seen = made.delegator(x)
    ran = made(x).ran.long().argmax(1)
    for row in range(20):
        subtask = int(seen.subtask[row].argmax())
        best = seen.selection[row, 3 * subtask : 3 * subtask + 3].argmax()
        assert ran[row] == 3 * subtask + best
    assert len(set(ran.tolist())) > 2


def test_a_subtask_without_samples():
    made = make(4, 2, delegator_share=0.0).train()
    with torch.no_grad():
        made.delegator.subtask_selector.bias.copy_(torch.tensor([50.0, -50.0]))
    losses = made.losses(images(), LABELS)
    sum(losses.values()).backward()
    assert all(p.grad is None for k in (2, 3) for p in made.experts[k].parameters())


def test_a_subtask_with_one_image_trains_experts_of_a_library():
    made = spread(make(4, 2, delegator_share=0.0)).train()
    made.experts = nn.ModuleList(
        named_classifier("torchvision:mobilenet_v3_small", CLASSES) for _ in range(4)
    )
    x = images()
    with torch.no_grad():
        seen = made.delegator.eval()(x)
        gap = seen.subtask[:, 1] - seen.subtask[:, 0]
        first, second = gap.sort(descending=True).values[:2]
        made.delegator.subtask_selector.bias[0] += (first + second) / 2  # one image for 1
    counts = []
    made.experts[2].register_forward_hook(lambda m, args, out: counts.append(len(args[0])))
    losses = made.losses(x, LABELS)
    assert counts == [1]
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()


def test_a_teacher_s_part_of_the_losses():
    teacher = network().train()
    told = copy.deepcopy(teacher).eval()  # by statistics that are its own, not the batch's
    made = still(make(progress=0.9, wgm="none").train())
    made.distillation = Distillation(teacher, weight=0.25, temperature=2.0)
    x = images()
    losses = made.losses(x, LABELS)
    expected = 0.0
    with torch.no_grad():
        soft = (told(x) / 2).softmax(1)
        for expert in made.experts:
            logits = expert(x)
            hard = -logits.log_softmax(1)[range(8), LABELS].mean()
            apart = (soft * (soft.log() - (logits / 2).log_softmax(1))).sum(1).mean()
            expected += 0.75 * hard.item() + 0.25 * 4 * apart.item()
    assert losses["loss_experts"].item() == pytest.approx(expected, rel=1e-4)
    losses["loss_experts"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(v.equal(teacher.state_dict()[k]) for k, v in told.state_dict().items())
    # It is no part of the model: neither saved nor counted.
    assert num_parameters(made) == num_parameters(make())
    made.progress = 0.0
    rough = made.delegator.rough(x)
    expected = made.distillation.loss(rough, LABELS, soft).mean()
    torch.testing.assert_close(made.losses(x, LABELS)["loss_rough"], expected)
    for wrong in ({"weight": 1.5}, {"temperature": 0.0}):
        with pytest.raises(ConfigError, match="must be"):
            Distillation(teacher, **wrong)


def test_a_teacher_s_part_with_subtasks():
    made = still(spread(make(4, 2, delegator_share=0.0, wgm="none")).train())
    teacher = spread_classes(network())
    made.distillation = Distillation(teacher, weight=1.0)
    x = images()
    losses = made.losses(x, LABELS)
    expected = 0.0
    with torch.no_grad():
        soft = teacher(x).softmax(1)
        groups = made.delegator.eval()(x).subtask.argmax(1)
        assert 2 <= groups.sum() <= 6
        for row in range(8):  # each image's own, among those that its subtask got
            for expert in made.experts[2 * groups[row] : 2 * groups[row] + 2]:
                logs = expert(x[row : row + 1]).log_softmax(1)[0]
                apart = (soft[row] * (soft[row].log() - logs)).sum()
                expected += apart.item() / int((groups == groups[row]).sum())
    assert losses["loss_experts"].item() == pytest.approx(expected, rel=1e-4)


def spread_classes(classifier):
    """Answers that differ from image to image."""
    with torch.no_grad():
        classifier.classify.weight.mul_(20)
    return classifier


def test_cost_is_delegator_and_the_expert_that_runs():
    # 16 × 16 pixels, c, 2c and 4c channels, one block a stage; multiply-adds by hand.
    def macs(c):
        stem = 16 * 16 * 9 * (3 * c + 2 * c * c) + 8 * 8 * 9 * (2 * c * c + 4 * c * c)
        return stem + 4 * 4 * 9 * (8 * c * c + 16 * c * c)

    cost = make(4, 2).cost(16, 16)
    assert cost.shared == macs(2) + 8 * (CLASSES + 4 + 2)
    assert cost.experts == tuple(macs(4 + k % 2) + (16 + 4 * (k % 2)) * CLASSES for k in range(4))


def test_curve_over_thresholds():
    made = spread(make()).eval()
    x, labels = images(20), torch.arange(20) % CLASSES
    first, last = threshold_curve(made, lambda: [(x, labels)], [0.0, 1.0])
    assert [first.mean_branches, last.mean_branches] == [0.0, 1.0]
    assert first.macs == made.cost(16, 16).shared
    first_network, expert = (num_parameters(m) for m in (made.delegator, made.experts[0]))
    assert first.loaded == first_network
    assert last.loaded > first_network + expert  # the second expert is larger
    right = made.delegator(x).rough.argmax(1) == labels
    assert first.accuracy == pytest.approx(100 * right.double().mean().item())
    with pytest.raises(ConfigError, match=r"early termination must be between 0 and 1, not 1\.5"):
        threshold_curve(made, list, [1.5])


@torch.no_grad()
def test_one_pass_gives_what_every_threshold_gives_alone():
    made = spread(make()).eval()
    x = images(20)
    median = made.delegator(x).rough.softmax(1).amax(1).median().item()
    seen = []
    for expert in made.experts:
        expert.register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    together = at_thresholds(made, x, [median, 1.0, 0.0])
    assert sum(seen) == 20  # τ 1 sends all on: each image to one expert, once
    for tau, found in zip([median, 1.0, 0.0], together, strict=True):
        made.threshold = tau
        alone = made(x)
        assert found.ran.equal(alone.ran)
        torch.testing.assert_close(found.logits, alone.logits, rtol=1e-4, atol=1e-5)
    assert together[0].ran.any(1).sum() == 10


def test_settings_and_data_that_cannot_be():
    with pytest.raises(ConfigError, match=r"COE\.THRESHOLD must be between 0 and 1, not -0\.1"):
        make(threshold=-0.1)
    with pytest.raises(ConfigError, match="5 experts do not divide among 2 subtasks"):
        make(5, 2)
    with pytest.raises(ConfigError, match=r"not after a share of 1\.0"):
        make(delegator_share=1.0)
    with pytest.raises(DataError, match="label 5 is no class; there are 5"):
        make().losses(images(1), torch.tensor([5]))
    made = make(4, 2)
    made.has_delegator.fill_(False)
    with pytest.raises(ConfigError, match="subtasks need the delegator"):
        made.losses(images(), LABELS)
