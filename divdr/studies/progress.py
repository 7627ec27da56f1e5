"""How far trainings in other processes are, read from what they write, as progress bars."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

_SHOWN = {
    "loss": "total_loss",
    "GFLOPs": "train/real_gflops",
    "inter (experts)": "clustering/inter_experts",
}
_LAST_LINES = 8  # figures come at different iterations


def follow(running: Mapping[str, tuple[Path, subprocess.Popen]]) -> None:
    """Show each run's progress and ETA until all have ended.

    Args:
        running: by name, output folder and process.
    """
    bars = {
        name: tqdm(desc=f"{name:>6}", unit="it", position=place, total=0, mininterval=1.0)
        for place, name in enumerate(running)
    }
    while any(process.poll() is None for _, process in running.values()):
        time.sleep(1.0)
        for name, (folder, _) in running.items():
            bars[name].total = bars[name].total or planned_iterations(folder)
            advance(bars[name], folder)
    for bar in bars.values():
        bar.close()


def advance(bar: tqdm, folder: Path, start: int = 0) -> int:
    """Bring a bar to where a run's metrics say that it is, and show its latest figures.

    Args:
        bar: counts iterations.
        folder: output folder of the run.
        start: iteration from which the bar counts.

    Returns:
        Iterations done since ``start``.
    """
    values = latest(folder)
    if not (values and bar.total):
        return 0
    done = max(0, min(int(values["iteration"]) + 1 - start, int(bar.total)))
    bar.update(done - bar.n)
    bar.set_postfix({k: f"{values[v]:.3f}" for k, v in _SHOWN.items() if v in values})
    return done


def latest(folder: Path) -> dict[str, float]:
    """The last values that a run wrote to ``metrics.json``; empty if there are none yet."""
    values: dict[str, float] = {}
    try:
        lines = (folder / "metrics.json").read_text(encoding="utf-8").splitlines()
    except OSError:
        return values
    for line in lines[-_LAST_LINES:]:
        try:
            values.update(json.loads(line))
        except json.JSONDecodeError:  # being written
            continue
    return values if "iteration" in values else {}


def planned_iterations(folder: Path) -> int:
    """``SOLVER.MAX_ITER`` of the ``config.yaml`` that a run has written; 0 if it has not yet."""
    try:
        lines = (folder / "config.yaml").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    found = [line.split(":")[1] for line in lines if line.strip().startswith("MAX_ITER:")]
    return int(found[0]) if found else 0
