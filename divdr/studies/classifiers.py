"""Classification systems trained in memory, side by side: tables of accuracy against multiply-adds.

A set of small images fits into memory, where a training costs a fraction of what it does through
data files and Detectron2's loader. Systems, losses, stages and costs are those of ``divdr.moe``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.classification import read_fashion_mnist
from ..engine import load_config
from ..modeling.classifiers import build_classifier
from ..moe import Stage

CONFIG = "configs/classification/fashion_mnist_single_gate.yaml"
_KEY = "MODEL.CLASSIFIER.SINGLE_GATE."
THRESHOLDS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 0.97, 1.0)


class Images(NamedTuple):
    """Normalised images (N, C, H, W) and their labels (N,)."""

    pixels: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Lengths:
    """Iterations of the stages.

    Attributes:
        base: of the base, and of networks before their experts would begin.
        gate: of the gate.
        experts: of the experts.
        stacking: of the stackers.
    """

    base: int
    gate: int
    experts: int
    stacking: int

    @property
    def after_base(self) -> int:
        """All but the base's."""
        return self.gate + self.experts + self.stacking


def read_images(folder: Path, split: str, size: int) -> Images:
    """Fashion-MNIST, its pixels averaged to ``size`` × ``size``, of mean 0 and deviation 1.

    Raises:
        DataError: a file is missing or damaged.
    """
    found = read_fashion_mnist(folder, split)
    pixels = torch.tensor(found.pixels).float()[:, None]
    pixels = F.adaptive_avg_pool2d(pixels, size)
    return Images((pixels - 72.9) / 80.0, torch.tensor(found.labels))


def augmented(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Images (N, C, H, W) shifted by at most one pixel, and every second one mirrored."""
    count, _, height, width = pixels.shape
    padded = F.pad(pixels, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    down, right = torch.randint(0, 3, (2, count, 1), generator=generator)
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    every = torch.arange(count)[:, None, None]
    found = padded[every, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    # With one channel a permuted map passes for channels last, in which narrow layers are slower.
    return found.clone(memory_format=torch.contiguous_format)


def train(
    system: Any, images: Images, iterations: int, *, seed: int, batch: int = 128, rate: float = 3e-3
) -> None:
    """Train by AdamW and a cosine that starts anew with each of the system's stages.

    Args:
        system: a ``ClassificationSystem``.
        images: that it learns from.
        iterations: of the whole training.
        seed: of order and augmentation.
        batch: images a step.
        rate: learning rate as a stage begins.
    """
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(system.parameters(), rate, weight_decay=0.01)
    stages = list(getattr(system, "stages", ())) or [Stage("all", 0.0)]
    starts = [stage.begins(iterations) for stage in stages] + [iterations]
    count = len(images.labels)
    order = iter(_epochs(count, min(batch, count), generator))
    torch.manual_seed(seed)
    system.train()
    for number, stage in enumerate(stages):
        begun, end = starts[number], starts[number + 1]
        system.progress = begun / iterations
        if hasattr(system, "begin"):
            system.begin(stage, lambda: _batches(images, 500))
        for step in range(begun, end):
            system.progress = step / iterations
            share = (step - begun) / (end - begun)
            for group in optimiser.param_groups:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * share))
            rows = next(order)
            losses = system.losses(augmented(images.pixels[rows], generator), images.labels[rows])
            optimiser.zero_grad()
            sum(losses.values()).backward()
            optimiser.step()


def _epochs(count: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        order = torch.randperm(count, generator=generator)
        yield from order[: count - count % batch].split(batch)


def _batches(images: Images, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(images.pixels.split(size), images.labels.split(size), strict=True)


@torch.no_grad()
def measure(system: Any, images: Images) -> dict[str, float]:
    """Accuracy in per cent and multiply-adds (10⁶) by name: "system", or all that a mixture has.

    Of a system with a threshold τ there are "threshold-τ" for many τ as well.

    Args:
        system: trained.
        images: that it is tested on.
    """
    system.eval()
    cost = system.cost(*images.pixels.shape[-2:])
    sums: dict[str, Tensor] = {}
    for pixels, labels in _batches(images, 500):
        if hasattr(system, "compared"):
            found = system.compared(pixels, labels, THRESHOLDS).predictions
        else:
            found = {"system": system(pixels)}
            if hasattr(system, "at_thresholds"):
                curve = system.at_thresholds(pixels, THRESHOLDS)
                found |= {
                    f"threshold-{threshold:g}": one
                    for threshold, one in zip(THRESHOLDS, curve, strict=True)
                }
        for name, (logits, ran) in found.items():
            right = (logits.argmax(1) == labels).sum().double()
            row = torch.stack([right, cost.of(ran).sum()])
            sums[name] = sums.get(name, torch.zeros(2, dtype=torch.float64)) + row
    figures = {}
    for name, total in sums.items():
        right, macs = (total / len(images.labels)).tolist()
        figures[f"{name} top-1"], figures[f"{name} MFLOPs"] = 100 * right, macs / 1e6
    return figures


def single_gate_figures(
    folder: Path, seed: int, lengths: Lengths, counts: Sequence[int] = (1, 5, 10), size: int = 14
) -> dict[str, dict[str, float]]:
    """Everything that Tables 2, 5 and 6 and the curve over τ compare, for one seed.

    All mixtures of a seed stand on the same base. The networks beside them train as long as base,
    gate, experts and stackers together.

    Args:
        folder: with Fashion-MNIST's files.
        seed: of weights, order and K-means.
        lengths: of the stages.
        counts: values of K.
        size: rows and columns of an image.

    Returns:
        Figures by name, by system.
    """
    images = read_images(folder, "train", size)
    tests = read_images(folder, "test", size)

    def build(**keys: Any) -> Any:
        torch.manual_seed(seed)
        fixed = {
            "MODEL.DEVICE": "cpu",
            "SEED": seed,
            "SOLVER.MAX_ITER": lengths.after_base,
            _KEY + "GATE_STAGE": lengths.gate,
            _KEY + "STACKING_STAGE": lengths.stacking,
        }
        pairs = [part for pair in {**fixed, **keys}.items() for part in pair]
        return build_classifier(load_config(CONFIG, pairs))

    found = {}
    base = build(**{_KEY + "EXPERTS": 0})
    train(base, images, lengths.base, seed=seed)
    found["base"] = measure(base, tests)
    weights = {
        name.partition(".")[2]: value.clone()
        for name, value in base.state_dict().items()
        if name.startswith(("shared.", "base."))
    }
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("one expert" if k == 1 else f"K = {k}", {_KEY + "EXPERTS": k}) for k in counts
    ]
    kinds.append(("K = 5, per class", {_KEY + "EXPERTS": 5, _KEY + "PARTITION": "class"}))
    for name, keys in kinds:
        system = build(**keys, **{_KEY + "BASE": "in memory"})
        system.base_weights = lambda: weights
        train(system, images, lengths.after_base, seed=seed + 1)
        found[name] = measure(system, tests)
    single = {"MODEL.CLASSIFIER.NAME": "build_single_classifier"}
    longer = lengths.base + lengths.after_base
    for name, keys in (
        ("base, as long", {}),
        ("wider", {"MODEL.CLASSIFIER.BRANCH_WIDTH": 1.5}),
        ("larger", {"MODEL.CLASSIFIER.CHANNELS": 5}),
    ):
        system = build(**single, **keys)
        train(system, images, longer, seed=seed)
        found[name] = measure(system, tests)
    return found
