"""Every classification system trained in float16 and bfloat16 against float32."""

import pytest
import torch
from mixed_precision import DTYPES, OldWeightCache, assert_close_gradients, gradients, half, parts
from torch import nn

from divdr.config import get_divdr_config
from divdr.modeling.classifiers import ImageClassifier, build_classifier
from divdr.moe import PWLU, Distillation, align, named_classifier

COUNT, CLASSES = 24, 6
MEMBERS = {f"members.{k}" for k in range(2)}
HYDRA = {"stem", "gater", "combiner", "classify"}
BRANCHES = {f"branches.{k}" for k in range(3)}
HEADS = {f"branch_heads.{k}" for k in range(3)}
EXPERTS = {f"experts.{k}" for k in range(3)}


def config(name, **keys):
    cfg = get_divdr_config()
    cfg.MODEL.META_ARCHITECTURE = "ImageClassifier"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [100.0], [60.0]
    classifier = cfg.MODEL.CLASSIFIER
    classifier.NAME = f"build_{name}_classifier"
    classifier.NUM_CLASSES, classifier.CHANNELS, classifier.MEMBERS = CLASSES, 6, 2
    hydra, coe = classifier.HYDRA, classifier.COE
    # All branches run: none of the choices can hang on rounding.
    hydra.BRANCHES, hydra.TOP_K, hydra.TRAIN_THRESHOLD = 3, 3, 0.0
    coe.EXPERTS, coe.DELEGATOR_CHANNELS = 3, 4
    for key, value in keys.items():
        setattr(coe if name == "coe" else hydra, key, value)
    return cfg


def build(name, progress=0.0, **keys):
    system = build_classifier(config(name, **keys))
    if name == "hydra":
        system.set_partition(torch.arange(CLASSES) // 2)
    if name == "coe":
        system.progress = progress
        align(m for m in system.modules() if isinstance(m, PWLU))
    return ImageClassifier(system=system, pixel_mean=[100.0], pixel_std=[60.0]).train()


def batch():
    generator = torch.Generator().manual_seed(1)
    images = 255 * torch.rand(COUNT, 1, 12, 12, generator=generator)
    return [{"image": image, "label": k % CLASSES} for k, image in enumerate(images)]


def hold_lesson(model):
    """Give the selector and the experts the same lesson in every precision.

    Whom a sample is assigned to is a choice, and where two are almost alike rounding makes it.
    """
    held = []
    original = model.system._lesson

    def lesson(*args):
        if not held:
            held.append(original(*args))
        return held[0]

    model.system._lesson = lesson


def still(model):
    """BatchNorm by its own statistics: those of few pixels amplify rounding."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()


CASES = {
    "single": ("single", {}, {"members.0"}),
    "ensemble": ("ensemble", {}, MEMBERS),
    "hydra": ("hydra", {"BRANCH_WEIGHT": 0.0}, HYDRA | BRANCHES),
    "dynk": ("hydra", {}, HYDRA | BRANCHES | HEADS),
    "coe, first stage": ("coe", {}, {"delegator.extractor", "delegator.task_predictor"}),
    "coe": ("coe", {"progress": 0.6}, {"delegator.expert_selector"} | EXPERTS),
    "coe, PWLU and CondConv": (
        "coe",
        {"progress": 0.6, "PWLU": 4, "CONDCONV": 2},
        {"delegator.expert_selector"} | EXPERTS,
    ),
}


def reached(names):
    found = parts([name.removeprefix("system.") for name in names], 2)
    numbered = ("members", "branches", "branch_heads", "experts", "delegator")
    return {name if name.startswith(numbered) else name.split(".")[0] for name in found}


@pytest.mark.parametrize("dtype", DTYPES, ids=["float16", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_float32(case, dtype):
    name, keys, expected = CASES[case]
    model = build(name, **keys)
    still(model)
    if name == "coe":
        hold_lesson(model)
    exact = gradients(model, model(batch()))
    assert reached(exact) == expected
    with half(dtype):
        losses = model(batch())
    assert all(value.dtype == torch.float32 for value in losses.values())
    found = gradients(model, losses)
    assert reached(found) == expected
    assert_close_gradients(found, exact, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float16", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_a_few_steps_stay_finite_and_move_every_part(case, dtype):
    name, keys, expected = CASES[case]
    model = build(name, **keys)
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(3):
        with half(dtype):
            losses = model(batch())
        found = gradients(model, losses)
        for key, p in model.named_parameters():
            p.grad = found.get(key)
        optimizer.step()
    moved = [k for k, v in model.named_parameters() if not v.equal(before[k])]
    assert reached(moved) == expected
    state = model.state_dict()
    assert all(v.isfinite().all() for v in state.values() if v.is_floating_point())
    with torch.autocast("cpu", dtype), torch.no_grad():
        outputs = model.eval()(batch())
    for output in outputs:  # within rounding of float32
        assert output["scores"].sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float16", "bfloat16"])
def test_what_a_lesson_weighs_is_not_rounded(dtype):
    model = build("coe", progress=0.6)
    lessons = []
    original = model.system._lesson
    model.system._lesson = lambda *args: lessons.append(original(*args)) or lessons[-1]
    with torch.autocast("cpu", dtype):
        model(batch())
    (lesson,) = lessons
    one = torch.ones(3)
    torch.testing.assert_close(lesson.expert_weights.sum(0).float(), one, rtol=0, atol=1e-6)
    torch.testing.assert_close(lesson.selection_weights.sum().float(), one[0], rtol=0, atol=1e-6)


def test_large_logits_do_not_overflow():
    # 24 samples and 3 experts of 3000 each are 216,000 in sum; float16 ends at 65,504.
    model = build("coe", progress=0.6)
    with torch.no_grad():
        model.system.delegator.expert_selector.bias.add_(3000)
    with torch.autocast("cpu", torch.float16):
        losses = model(batch())
    assert all(value.isfinite() for value in losses.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=["float16", "bfloat16"])
@pytest.mark.parametrize("progress", [0.0, 0.6])
def test_a_teacher_s_gradients_are_those_of_float32(dtype, progress):
    model = build("coe", progress=progress)
    still(model)
    hold_lesson(model)
    teacher = named_classifier("torchvision:mobilenet_v3_small", CLASSES, in_channels=1)
    model.system.distillation = Distillation(teacher, weight=0.8, temperature=4.0)
    exact = gradients(model, model(batch()))
    with half(dtype):
        losses = model(batch())
    assert_close_gradients(gradients(model, losses), exact, dtype)
    assert all(p.grad is None for p in teacher.parameters())


def test_the_stand_in_of_the_old_cache_loses_gradients():
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    with torch.autocast("cpu", torch.bfloat16), OldWeightCache(torch.bfloat16):
        with torch.no_grad():
            layer(x)
        assert not layer(x).requires_grad
    with half(torch.bfloat16):
        layer(x).sum().backward()
    assert layer.weight.grad.all()
