"""A training of minutes in which everything happens that a training of days would meet.

Two processes on this machine train the paper's configs on images of 64 to 128 pixels: mixed
precision, synchronised normalisation with cells that only some images reach, clustering, the
budget switching on, precise statistics, evaluation, checkpoints, a kill and a resumption.
"""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import DivdrError

_PATIENCE = 1800  # seconds until a run counts as hanging

_COMMON: Mapping[str, Any] = {
    "DATALOADER.NUM_WORKERS": 1,
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.WARMUP_ITERS": 2,
    "SOLVER.AMP.ENABLED": True,
    "TEST.PRECISE_BN.NUM_ITER": 2,
    "INPUT.MIN_SIZE_TRAIN": "(64, 96)",
    "INPUT.MAX_SIZE_TRAIN": 128,
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TEST": 128,
    "MODEL.ROUTING.COST_SIZES": "[[64, 128]]",
    "MODEL.ROUTING.DROP_PATH": 0.1,  # numbers that a resumed run has to draw again
    # Near their threshold, gates send images of a batch different ways from the start.
    "MODEL.ROUTING.GATE_BIAS": 0.2,
    "MODEL.ROUTING.BUDGET.START": 0.4,
    "MODEL.ROUTING.BUDGET.RAMP": 0.2,
    "MODEL.ROUTING.CLUSTERING.NUM_EXPERTS": 2,
}
_SEGMENTATION: Mapping[str, Any] = {"INPUT.CROP.SIZE": "(64, 96)"}
_DETECTION: Mapping[str, Any] = {
    "SOLVER.STEPS": "()",
    "SOLVER.BASE_LR": 0.005,  # that of 16 images a step would be too much for 4
    "MODEL.ANCHOR_GENERATOR.SIZES": "[[8], [16], [32], [64], [128]]",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 64,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 64,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
}
# A CPU emulates float16, thirty times slower than float32: heads of less, the backbone in full.
_NARROW_HEADS: Mapping[str, Any] = {
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
}
_FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "cityscapes": ("configs/divdr_cityscapes.yaml", _SEGMENTATION),
    "faster_rcnn": ("configs/divdr_coco_faster_rcnn.yaml", _DETECTION),
    "mask_rcnn": ("configs/divdr_coco_mask_rcnn.yaml", _DETECTION),
}
NAMES = tuple(_FAMILIES)


@dataclass(frozen=True)
class Rehearsal:
    """What to rehearse.

    Attributes:
        name: one of ``NAMES``.
        precision: "float16" or "bfloat16".
        iterations: of the training; a multiple of 6, so that all that comes every so often comes
            at least twice.
        overrides: more of the config, by key; networks that are smaller, say.
    """

    name: str
    precision: str = "float16"
    iterations: int = 30
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> str:
        """File of the config, below the repository."""
        return _FAMILIES[self.name][0]

    def settings(self) -> dict[str, Any]:
        """All that differs from the config."""
        narrow = self.name != "cityscapes" and self.precision == "float16"
        return {
            **_COMMON,
            **_FAMILIES[self.name][1],
            **(_NARROW_HEADS if narrow and not torch.cuda.is_available() else {}),
            "SOLVER.AMP.DTYPE": self.precision,
            "SOLVER.MAX_ITER": self.iterations,
            "SOLVER.CHECKPOINT_PERIOD": self.iterations // 3,
            "TEST.EVAL_PERIOD": self.iterations // 2,
            "MODEL.ROUTING.CLUSTERING.PERIOD": self.iterations // 6,
            **self.overrides,
        }


@dataclass(frozen=True)
class Outcome:
    """How a rehearsal went.

    Attributes:
        failures: what was not as it should be, a sentence each.
        seconds: median time of an iteration.
        difference: largest absolute difference between a weight of the whole run and of the one
            that was killed and resumed; 0 where arithmetic repeats itself, as on CPUs.
    """

    failures: list[str]
    seconds: float
    difference: float


def rehearse(
    rehearsal: Rehearsal, repository: Path, data: Path, output: Path, *, weights: str = ""
) -> Outcome:
    """Train twice by two processes, once killed and resumed, and look at what came of it.

    Args:
        rehearsal: what to train.
        repository: holds ``tools`` and ``configs``.
        data: folder with drawn data sets in the layouts of Cityscapes and COCO.
        output: gets a folder for each run, and their logs.
        weights: checkpoint to start from; "" starts from scratch.

    Raises:
        DivdrError: a run failed or hung; its log is named.
    """
    whole, broken = output / "whole", output / "killed"
    for folder in (whole, broken):
        folder.mkdir(parents=True, exist_ok=True)

    def start(folder: Path, *options: str) -> _Run:
        settings = {**rehearsal.settings(), "OUTPUT_DIR": folder, "MODEL.WEIGHTS": weights}
        return _Run(rehearsal.config, settings, repository, data, folder, options)

    first = rehearsal.iterations // 3
    start(whole).finish()
    run = start(broken)
    run.wait_for(lambda: (broken / f"model_{first - 1:07d}.pth").is_file())
    run.kill()
    start(broken, "--resume").finish()
    failures = [f"{text} (whole run)" for text in failures_of(whole, rehearsal)]
    failures += [f"{text} (killed and resumed)" for text in failures_of(broken, rehearsal)]
    difference = _difference(whole, broken)
    if difference > 0 and not torch.cuda.is_available():
        failures.append(f"weights of both runs differ by up to {difference:.3g}")
    times = [r["time"] for r in _records(whole) if "time" in r]
    return Outcome(failures, sorted(times)[len(times) // 2], difference)


class _Run:
    """Two processes of tools/train_net.py, set up as torchrun sets up those that it starts."""

    def __init__(
        self,
        config: str,
        settings: Mapping[str, Any],
        repository: Path,
        data: Path,
        folder: Path,
        options: Sequence[str],
    ) -> None:
        command = [sys.executable, "-W", "ignore", "tools/train_net.py", "--config-file", config]
        command += [*options, *(str(part) for pair in settings.items() for part in pair)]
        shared = {
            **os.environ,
            **({} if torch.cuda.is_available() else {"OMP_NUM_THREADS": "1"}),
            "DETECTRON2_DATASETS": str(data),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "TORCHELASTIC_RUN_ID": "rehearsal",
        }
        self._logs = [folder / f"console_{rank}.txt" for rank in range(2)]
        self._processes = []
        for rank, path in enumerate(self._logs):
            with path.open("a") as log:
                self._processes.append(
                    subprocess.Popen(
                        command,
                        cwd=repository,
                        env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )

    def finish(self) -> None:
        """Wait for the end of both."""
        self._wait(lambda: all(p.poll() == 0 for p in self._processes))

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds while the run goes on."""
        self._wait(condition)
        if all(p.poll() is not None for p in self._processes):
            raise DivdrError(f"the run of {self._logs[0]} ended before it could be killed")

    def kill(self) -> None:
        """End both as a failing machine would."""
        for process in self._processes:
            process.kill()
            process.wait()

    def _wait(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + _PATIENCE
        while not condition():
            failed = [i for i, p in enumerate(self._processes) if p.poll() not in (None, 0)]
            if failed or time.monotonic() > end:
                self.kill()
                log = self._logs[failed[0] if failed else 0]
                lines = log.read_text(errors="replace").splitlines()[-30:]
                how = "failed" if failed else f"hangs: no end in {_PATIENCE} s"
                raise DivdrError("\n".join([f"the run of {log} {how}:", *lines]))
            time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def failures_of(folder: Path, rehearsal: Rehearsal) -> list[str]:
    """What the files of a run that came to its end do not show, a sentence each."""
    records, failures = _records(folder), []
    iterations = rehearsal.iterations

    def times(key: str) -> set[int]:
        return {r["iteration"] for r in records if key in r}

    written = 1 if iterations <= 20 else 2  # Detectron2 writes every 20 iterations and at the end
    wanted = {
        "routing/real_gflops": 2,
        "clustering/inter_experts": written,
        "train/real_gflops": written,
    }
    for key, least in wanted.items():
        if len(times(key)) < least:
            failures.append(f"{key} was logged {len(times(key))} times, not {least}")
    broken = sorted(
        {
            key
            for record in records
            for key, value in record.items()
            if key.startswith(("loss", "total_loss", "train/", "clustering/", "routing/"))
            and not math.isfinite(value)
        }
    )
    if broken:
        failures.append(f"{', '.join(broken)} was not finite")
    budget = [(r["iteration"], r["loss_budget"]) for r in records if "loss_budget" in r]
    start = round(rehearsal.settings()["MODEL.ROUTING.BUDGET.START"] * iterations)
    if not any(value > 0 for when, value in budget if when >= start):
        failures.append("the budget loss never switched on")
    if any(value != 0 for when, value in budget if when < start):
        failures.append("the budget loss was on before its start")
    for name in (f"model_{2 * (iterations // 3) - 1:07d}.pth", "model_final.pth"):
        if not (folder / name).is_file():
            failures.append(f"{name} was not written")
    if (folder / "model_final.pth").is_file():
        failures += _checkpoint_failures(folder / "model_final.pth", rehearsal)
    return failures


def _checkpoint_failures(path: Path, rehearsal: Rehearsal) -> list[str]:
    content, failures = torch.load(path, map_location="cpu", weights_only=True), []
    model = content["model"]
    for name, value in model.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            failures.append(f"{name} is not finite")
        if name.endswith("running_var") and bool((value < 0).any()):
            failures.append(f"{name} is negative")
    if content["routing"]["experts"]["centres"] is None:
        failures.append("the checkpoint holds no centres")
    if rehearsal.precision == "float16" and not content["trainer"]["_trainer"]["grad_scaler"]:
        failures.append("the checkpoint holds no scale of the gradients")
    return failures


def _difference(one: Path, other: Path) -> float:
    first, second = (
        torch.load(f / "model_final.pth", map_location="cpu", weights_only=True)["model"]
        for f in (one, other)
    )
    return max(float((first[k].double() - second[k].double()).abs().max()) for k in first)
