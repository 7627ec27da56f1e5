"""Starting a run from the checkpoint of the trunk that it shares with others."""

from __future__ import annotations

import shutil
from typing import Any

from detectron2.config import CfgNode

from ..checkpoint import read_weights, write_atomically, write_text_atomically
from ..experts import LocalExperts
from .planning import Run


def start_from_trunk(run: Run) -> None:
    """Put the trunk's last checkpoint and its curves into the run's folder, unless done before.

    Weights, optimiser, schedule, activation bank and centres go along. A run with another number
    of experts, partition or scaling clusters the same bank anew; one that clusters other values
    (gates before instead of after their non-linearity) starts with an empty bank.
    """
    if run.trunk is None or (run.folder / "last_checkpoint").is_file():
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    content = read_weights(run.trunk.folder / "model_final.pth")
    experts = content.get("routing", {}).get("experts")
    if experts is not None:
        content["routing"]["experts"] = _suited(experts, run.trunk, run)
    curves = run.trunk.folder / "metrics.json"
    if curves.is_file():
        shutil.copyfile(curves, run.folder / "metrics.json")
    name = f"model_{content['iteration']:07d}.pth"
    write_atomically(run.folder / name, content)
    write_text_atomically(run.folder / "last_checkpoint", name)


def _suited(state: dict[str, Any], trunk: Run, run: Run) -> dict[str, Any]:
    before, after = _clustering(trunk), _clustering(run)
    if all(before[key] == after[key] for key in ("NUM_EXPERTS", "GATES", "PARTITION", "SCALING")):
        return state
    experts = LocalExperts(
        after.NUM_EXPERTS,
        state["dim"],
        restarts=after.KMEANS.RESTARTS,
        seed=run.seed,
        partition=after.PARTITION,
        scaling=after.SCALING,
    )
    # A run that ended by itself and only measured has no bank to hand on.
    if before.GATES == after.GATES and state["bank"] is not None:
        experts.bank.load_state_dict(state["bank"])
        if state["centres"] is not None:
            experts.cluster(trunk.cfg.SOLVER.STOP_ITER)
    return experts.state_dict()


def _clustering(run: Run) -> CfgNode:
    return run.cfg.MODEL.ROUTING.CLUSTERING
