"""When routing is not routing: judgements of plain arrays, and the file in which a run keeps them.

Each judgement returns what is wrong and what to do about it, or None. N images, D gates, T = 3 of
each cell, K experts, n clusterings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError

FILE = "routing_warnings.json"
"""In a run's folder of training, and in ``inference`` with the data set's name before it."""

HOLDS = 0.9
CLUSTERINGS = 3
ALIKE = 0.05
IDLE_CLUSTERINGS = 5
OFF_TARGET = 0.1
SHRUNK = 0.8
SHRINKING = 5


@dataclass(frozen=True)
class RoutingWarning:
    """A judgement.

    Attributes:
        kind: a word for what is wrong; a run tells each once.
        text: a sentence: what is wrong, and what to do.
        iteration: of training, when it was first seen; -1 in evaluation.
        data: name of the evaluated data set; "" in training.
    """

    kind: str
    text: str
    iteration: int = -1
    data: str = ""


def one_expert_holds(sizes: Any, clusterings: int = CLUSTERINGS) -> RoutingWarning | None:
    """One expert has more than 90 % of the images in each of the last clusterings.

    Args:
        sizes: (n, K) images of each expert, the last clustering last.
        clusterings: how many of them.
    """
    table = np.asarray(sizes, dtype=float)
    if table.ndim != 2 or table.shape[1] < 2 or len(table) < clusterings:
        return None
    last = table[-clusterings:]
    shares = last / np.maximum(last.sum(1, keepdims=True), 1)
    expert = int(shares[-1].argmax())
    if not (shares[:, expert] > HOLDS).all():
        return None
    seen = f" for {clusterings} clusterings" if clusterings > 1 else ""
    return RoutingWarning(
        "one_expert",
        f"expert {expert} holds {shares[-1, expert]:.0%} of the images{seen}, so that there are "
        "hardly experts: try a smaller NUM_EXPERTS, a larger clustering WEIGHT, SCALING std or "
        "PARTITION mixture (MODEL.ROUTING.CLUSTERING)",
    )


def one_route(gates: Any, exists: Any) -> RoutingWarning | None:
    """All images open the same gates, and not all of them.

    Args:
        gates: (N, D) activations.
        exists: (D,) bool, whether the transform is there.
    """
    is_open = np.asarray(gates) > 0
    there = np.asarray(exists, dtype=bool)
    if len(is_open) < 2 or is_open[:, there].all() or (is_open != is_open[0]).any():
        return None
    return RoutingWarning(
        "one_route",
        f"all {len(is_open)} images take one and the same route, which a static network runs "
        "cheaper: try a later or weaker budget (BUDGET.START, WEIGHT, TARGET), or export the route "
        "(tools/export_experts.py)",
    )


def gates_open(gates: Any, exists: Any) -> RoutingWarning | None:
    """Every gate that is there is open for every image; arguments as :func:`one_route`."""
    is_open = np.asarray(gates)[:, np.asarray(exists, dtype=bool)] > 0
    if not is_open.size or not is_open.all():
        return None
    return RoutingWarning(
        "gates_open",
        "every gate is open for every image, so that nothing is saved: without a budget that is "
        "usual; set BUDGET.TARGET_SHARE, or a larger BUDGET.WEIGHT (MODEL.ROUTING.BUDGET)",
    )


def gates_alike(gates: Any) -> RoutingWarning | None:
    """All open gates of all images have about the same value; (N, D) activations."""
    values = np.asarray(gates, dtype=float)
    values = values[values > 0]
    if len(values) < 2:
        return None
    low, high = np.quantile(values, [0.01, 0.99])
    if high - low > ALIKE:
        return None
    return RoutingWarning(
        "gates_alike",
        f"open gates are all about {np.median(values):.2f}, whatever image and cell: they learn "
        "nothing; try a larger SOLVER.GATE_LR_FACTOR, a smaller MODEL.ROUTING.GATE_BIAS or longer "
        "training",
    )


def unused_cells(
    idle: Any, clusterings: int = IDLE_CLUSTERINGS, names: Sequence[str] = ()
) -> RoutingWarning | None:
    """Cells that no training image opened in the last clusterings.

    Args:
        idle: (cells,) in how many clusterings up to the last nobody opened a gate of each.
        clusterings: how many tell.
        names: of the cells.
    """
    counts = np.asarray(idle)
    found = np.flatnonzero(counts >= clusterings)
    if not len(found):
        return None
    which = ", ".join(names[i] for i in found[:3]) if names else str(found[:3].tolist())
    more = ", …" if len(found) > 3 else ""
    return RoutingWarning(
        "unused_cells",
        f"{len(found)} of {len(counts)} cells ({which}{more}) have been opened by no training "
        f"image for {int(counts[found].min())} clusterings and more: they learn nothing and "
        "are dead weight; under a tight budget that is usual, else raise BUDGET.TARGET or start it "
        "later",
    )


def off_target(kind: str, share: float, target: float) -> RoutingWarning | None:
    """Cost ends beside what was asked for.

    Args:
        kind: "cost_target", whose share is of the real cost and must be met within a tenth of the
            target, or "budget", whose expected share must not be above it by more than 0.1.
        share: of the all-open cost, over the last steps.
        target: what it should be.
    """
    if kind == "cost_target":
        if abs(share - target) <= OFF_TARGET * target:
            return None
        way = "raise it" if share > target else "lower it"
        return RoutingWarning(
            kind,
            f"images cost a share of {share:.2f} where the cost target is {target:.2f}, well after "
            f"its ramp: it is out of reach so; {way}, start earlier (TARGET_START), or give gates "
            "a larger learning rate (SOLVER.GATE_LR_FACTOR)",
        )
    if share - target <= OFF_TARGET:
        return None
    return RoutingWarning(
        kind,
        f"the expected cost is a share of {share:.2f} where the budget's TARGET is {target:.2f}: "
        "the budget loss is too weak beside the others; raise BUDGET.WEIGHT, or set "
        "BUDGET.TARGET_SHARE, which is met",
    )


def pulled_together(inter: Any, acts: Any) -> RoutingWarning | None:
    """Centres come closer clustering by clustering while the clustering loss acts.

    Args:
        inter: (n,) mean distance between centres at each clustering.
        acts: (n,) bool, whether the loss acted before it.
    """
    distances = np.asarray(inter, dtype=float)[-SHRINKING:]
    acting = np.asarray(acts, dtype=bool)[-SHRINKING:]
    if len(distances) < SHRINKING or not acting.all() or not (np.diff(distances) < 0).all():
        return None
    if distances[-1] > SHRUNK * distances[0]:
        return None
    return RoutingWarning(
        "pulled_together",
        f"the clustering loss pulls experts together: the distance between centres fell from "
        f"{distances[0]:.3g} to {distances[-1]:.3g} in {SHRINKING} clusterings; try a larger "
        "MARGIN, a smaller clustering WEIGHT, or a weaker budget, which shrinks all gates",
    )


def swapped_ids(before: Any, after: Any) -> RoutingWarning | None:
    """The clusters stayed, and their numbers did not.

    Args:
        before: (N,) expert of each image at a clustering.
        after: (N,) of the same images at the next.
    """
    from sklearn.metrics import adjusted_rand_score

    one, two = np.asarray(before), np.asarray(after)
    if len(one) < 2 or adjusted_rand_score(one, two) < 0.5 or (one == two).mean() >= 0.5:
        return None
    return RoutingWarning(
        "swapped_ids",
        f"experts swapped their numbers: {(one != two).mean():.0%} of the images changed expert "
        "though the clusters stayed; the loss pulls them to and fro; cluster more often "
        "(CLUSTERING.PERIOD) or go on from the centres before (CLUSTERING.KMEANS.WARM_START)",
    )


def warnings_text(found: Sequence[RoutingWarning]) -> str:
    """What a file of warnings holds."""
    return json.dumps([asdict(warning) for warning in found], indent=1)


def read_warnings(path: str | Path) -> list[RoutingWarning]:
    """Warnings of one file; none if it is not there.

    Raises:
        DataError: it is damaged.
    """
    path = Path(path)
    if not path.is_file():
        return []
    try:
        return [RoutingWarning(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} holds no warnings of routing ({error})") from None


def routing_warnings(folder: str | Path) -> list[RoutingWarning]:
    """All that a run was told: in training, by iteration, then in its last evaluations.

    Args:
        folder: of the run, its ``OUTPUT_DIR``.

    Raises:
        DataError: a file is damaged.
    """
    folder = Path(folder)
    trained = sorted(read_warnings(folder / FILE), key=lambda warning: warning.iteration)
    files = sorted((folder / "inference").glob(f"*_{FILE}"))
    return trained + [warning for file in files for warning in read_warnings(file)]
