"""Run folders with made-up numbers, as the trainer and the evaluator write them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from divdr.routing.space import RoutingSpace
from divdr.visualization import reached_from_gates

CHARACTERS = ("city", "night", "rural")


def route(space: RoutingSpace, base: np.ndarray, noise: float, seed: int) -> np.ndarray:
    """A(x) (D,) near ``base``, zero where a transform is missing or a cell not reached."""
    random = np.random.default_rng(seed)
    gates = np.zeros((space.num_cells, 3))
    for node in space.cells:
        for transform in node.transforms:
            value = base[node.index, transform] + random.normal(0, noise)
            gates[node.index, transform] = max(0.0, np.tanh(value))
    reached = reached_from_gates(space, gates.reshape(-1))
    gates[~reached] = 0
    return gates.reshape(-1).astype(np.float32)


def scene(expert: int, seed: int, height: int = 64, width: int = 128):
    """An image (H, W, 3) uint8 and its labels (H, W)."""
    random = np.random.default_rng(seed)
    labels = np.zeros((height, width), dtype=np.int64)
    labels[height // 2 :] = 1
    for _ in range(3 + 2 * expert):
        top, left = random.integers(0, height - 16), random.integers(0, width - 24)
        labels[top : top + 16, left : left + 24] = random.integers(2, 6)
    shades = np.array(
        [[150, 190, 230], [110, 105, 110], [180, 120, 90], [70, 120, 60], [60, 60, 150], [200] * 3]
    )
    image = shades[labels] * (0.35 if expert == 1 else 1.0) + random.normal(
        0, 8, (*labels.shape, 3)
    )
    labels[:2] = 255
    return image.clip(0, 255).astype(np.uint8), labels


def write_run(
    folder: Path,
    *,
    space: RoutingSpace,
    dataset: str = "toy_val",
    images: int = 24,
    experts: int = 3,
    noise: float = 0.3,
    seed: int = 0,
    picture_folder: Path | None = None,
) -> None:
    """Write a whole run folder; pictures only if their folder is given."""
    folder.mkdir(parents=True)
    write_metrics(folder, seed, noise)
    random = np.random.default_rng(seed)
    bases = random.normal(0.1, 0.9, (experts, space.num_cells, 3))
    expert = np.arange(images) % experts
    rows = np.stack([route(space, bases[k], noise, i) for i, k in enumerate(expert)])
    centres = np.stack([rows[expert == k].mean(axis=0) for k in range(experts)])
    names = []
    for i, k in enumerate(expert):
        name = (picture_folder or Path("/nowhere")) / f"{CHARACTERS[k % 3]}_{i:03d}.png"
        names.append(str(name))
        if picture_folder is not None:
            picture_folder.mkdir(exist_ok=True)
            Image.fromarray(scene(int(k), i)[0]).save(name)
    reached = np.stack([reached_from_gates(space, row) for row in rows])
    inference = folder / "inference"
    inference.mkdir()
    np.savez(
        inference / f"activations_{dataset}.npz",
        file_names=np.array(names),
        activations=rows,
        reached=reached,
        expected_cost=rows.sum(axis=1) * 0.2e9,
        real_cost=(rows > 0).sum(axis=1) * 0.3e9,
        expert=expert,
        centres=centres,
        scales_per_layer=np.array(space.scales_per_layer),
    )
    routing = {
        "expected_gflops": float(rows.sum(axis=1).mean() * 0.2),
        "expected_gflops_std": float(rows.sum(axis=1).std() * 0.2),
        "real_gflops": float((rows > 0).sum(axis=1).mean() * 0.3),
        "real_gflops_std": float((rows > 0).sum(axis=1).std() * 0.3),
        "open_cells": float((rows.reshape(images, -1, 3).sum(axis=2) > 0).mean()),
        "inter_experts": 2.02 - noise,
        "intra_pairs_experts": 1.6 * noise + 0.1,
        "intra_centre_experts": noise + 0.07,
        "inter_refit": 3.21 - noise,
        "intra_pairs_refit": 1.5 * noise + 0.1,
        "intra_centre_refit": noise + 0.05,
        **{f"images_expert_{k}": float(n) for k, n in enumerate(np.bincount(expert))},
        "something_new": {"deep": [1]},
    }
    results = {dataset: {"sem_seg": {"mIoU": 51.234 + seed, "fwIoU": 80.0}, "routing": routing}}
    (inference / "results.json").write_text(json.dumps(results))


def write_metrics(folder: Path, seed: int = 0, noise: float = 0.3) -> None:
    """A falling loss, clustering from the third line on."""
    random = np.random.default_rng(seed)
    lines = []
    for iteration in range(19, 2000, 20):
        record = {
            "iteration": iteration,
            "lr": 0.05 * (1 - iteration / 2000) ** 0.9,
            "loss_sem_seg": 2 * np.exp(-iteration / 600) + 0.3 + random.normal(0, 0.03),
            "train/expected_gflops": 30 - iteration / 150 + random.normal(0, 0.2),
            "train/real_gflops": 36 - iteration / 250 + random.normal(0, 0.2),
        }
        if iteration > 800:
            record["loss_budget"] = 0.1 * np.exp(-(iteration - 800) / 300)
            record["loss_clustering"] = 0.6 * np.exp(-(iteration - 800) / 500) + noise / 4
        if iteration % 50 == 49:
            record["clustering/inter_experts"] = 1 + 2 * (1 - np.exp(-iteration / 700)) - noise
            record["clustering/intra_pairs_experts"] = 1.2 + noise - iteration / 4000
            record["clustering/intra_centre_experts"] = 0.8 + noise - iteration / 4000
        if iteration in (999, 1999):
            record["routing/inter_refit"] = 4.21 - iteration / 1999 - noise
            record["routing/intra_pairs_refit"] = 1.5 * noise + 0.1
            record["routing/intra_centre_refit"] = noise + 0.05
        record["total_loss"] = sum(v for k, v in record.items() if k.startswith("loss"))
        lines.append(json.dumps(record))
    (folder / "metrics.json").write_text("\n".join(lines) + "\n")
