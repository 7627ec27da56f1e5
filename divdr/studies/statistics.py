"""Means over seeds, paired differences with their confidence, and scores of single runs."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from ..checkpoint import write_text_atomically
from ..engine import load_config
from ..engine.compare import evaluated_gflops
from ..engine.predictor import Predictor
from ..experts import diversity, kmeans
from ..modeling import find_backbone
from ..visualization import RouteData, RunData

NOTHING = "–"
"""Stands where a table has no number."""


def _signed(value: float, digits: int) -> str:
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"


@dataclass(frozen=True)
class Summary:
    """Values of several seeds.

    Attributes:
        n: how many.
        mean: their mean.
        std: sample standard deviation (n − 1); NaN for one value.
    """

    n: int
    mean: float
    std: float

    def text(self, digits: int = 2) -> str:
        """``1.23 ± 0.04``; without spread for one value."""
        mean = f"{self.mean:.{digits}f}"
        return mean if math.isnan(self.std) else f"{mean} ± {self.std:.{digits}f}"


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences.

    Attributes:
        n: pairs.
        mean: mean difference.
        low: lower end of the confidence interval; NaN for one pair.
        high: upper end.
    """

    n: int
    mean: float
    low: float
    high: float

    def text(self, digits: int = 2) -> str:
        """The mean, ``+1.23``; no sign where rounding leaves zero."""
        return _signed(self.mean, digits)

    def interval(self, digits: int = 2) -> str:
        """``-0.1 to +0.3``; a dash for one pair."""
        if math.isnan(self.low):
            return NOTHING
        return f"{_signed(self.low, digits)} to {_signed(self.high, digits)}"


def summarise(values: Sequence[float]) -> Summary:
    """Mean and standard deviation.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("nothing to summarise")
    std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Summary(len(values), float(np.mean(values)), std)


def paired_difference(
    a: Sequence[float], b: Sequence[float], confidence: float = 0.95
) -> Difference:
    """How much b exceeds a, by Student's t over the pairs' differences.

    Args:
        a: values of n pairs.
        b: values of the same pairs.
        confidence: of the two-sided interval.

    Raises:
        ValueError: there is no pair, or the numbers of values differ.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(f"{len(a)} and {len(b)} values do not make pairs")
    differences = np.subtract(np.asarray(b, dtype=float), np.asarray(a, dtype=float))
    n, mean = len(differences), float(differences.mean())
    if n == 1:
        return Difference(1, mean, math.nan, math.nan)
    with warnings.catch_warnings():
        # Of differences that are all the same, whose interval is a point.
        warnings.simplefilter("ignore", RuntimeWarning)
        interval = stats.ttest_rel(b, a).confidence_interval(confidence)
    return Difference(n, mean, float(interval.low), float(interval.high))


def first_routes(folder: Path) -> RouteData | None:
    """Routes of a finished run's test images, of its first data set; None if it has none."""
    return next(iter((RunData.load(folder).routes or {}).values()), None)


_TIMED = 40  # images
_ROUNDS = 3


@torch.no_grad()
def plan_time(folder: Path) -> dict[str, float]:
    """Milliseconds that a run's backbone takes for a test image, alone and on one thread.

    The median over images of the fastest of three rounds, of what evaluation runs: the plan. It is
    measured once, on whatever else the machine is doing, and kept in the run's folder.

    Args:
        folder: of a finished run, evaluated on one data set.

    Returns:
        "ms"; nothing for a run without a routed backbone or whose images are gone.
    """
    kept = folder / "plan_time.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    routes = first_routes(folder)
    if routes is None or not all(Path(name).is_file() for name in routes.file_names[:_TIMED]):
        return {}
    cfg = load_config(
        str(folder / "config.yaml"), ["MODEL.WEIGHTS", str(folder / "model_final.pth")]
    )
    predictor = Predictor(cfg)
    backbone = find_backbone(predictor.model)
    seconds: list[list[float]] = []
    started = [0.0]
    before = backbone.register_forward_pre_hook(
        lambda *_: started.__setitem__(0, time.perf_counter())
    )
    after = backbone.register_forward_hook(
        lambda *_: seconds[-1].append(time.perf_counter() - started[0])
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in [
            routes.file_names[0],
            *routes.file_names[:_TIMED],
        ]:  # the first builds the plan
            seconds.append([])
            for _ in range(_ROUNDS):
                predictor(name)
    finally:
        torch.set_num_threads(threads)
        before.remove()
        after.remove()
    found = {"ms": 1e3 * float(np.median([min(own) for own in seconds[1:]]))}
    write_text_atomically(kept, json.dumps(found))
    return found


def _first_results(folder: Path) -> dict[str, Any]:
    """What the evaluation of a finished run found on its first data set."""
    return next(iter((RunData.load(folder).results or {}).values()), {})


def backbone_cost(folder: Path) -> dict[str, float]:
    """10⁹ multiply-adds that a run's backbone and neck take for a test image, as padded.

    Args:
        folder: of a finished run, evaluated on one data set.

    Returns:
        "gflops", the mean over images; nothing where the evaluation counted none.

    Raises:
        DataError: the folder holds no evaluated run.
    """
    found = evaluated_gflops(_first_results(folder))
    return {} if found is None else {"gflops": found}


REFIT_EXPERTS = (2, 3, 4, 6)
"""K of the K-means that :func:`spread` makes."""


def spread(folder: Path) -> dict[str, float]:
    """Inter and intra distances (DivDR, Table 2) of a new K-means over A of the test images.

    The same yardstick for runs that were trained with different K, or with gates clustered before
    their non-linearity: A is taken after it, and clustered anew. The experts of the training play
    no part.

    Args:
        folder: of a finished run, evaluated on one data set.

    Returns:
        "inter_refit_K", "intra_pairs_refit_K" and "intra_centre_refit_K" for K = 2, 3, 4, 6; those
        K are left out for which there are too few images.
    """
    routes = first_routes(folder)
    if routes is None:
        return {}
    rows = torch.from_numpy(routes.activations)
    found = {}
    for k in REFIT_EXPERTS:
        if len(rows) < k:
            continue
        clusters = kmeans(rows, k, seed=0)
        distances = diversity(rows, clusters.centres, clusters.assignment)
        found[f"inter_refit_{k}"] = distances.inter
        found[f"intra_pairs_refit_{k}"] = distances.intra_pairs
        found[f"intra_centre_refit_{k}"] = distances.intra_centre
    return found


def off_target(folder: Path) -> dict[str, float]:
    """Real cost of the test images against ``BUDGET.TARGET_SHARE`` or ``TARGET_GFLOPS``, per cent.

    Args:
        folder: of a finished run, evaluated on one data set.

    Returns:
        "gflops", of the whole real cost, and "share", of the part that gates decide upon; 2.0 is
        2 % more than was asked for. Nothing for a run without a cost target.
    """
    budget = load_config(str(folder / "config.yaml")).MODEL.ROUTING.BUDGET
    figures = _first_results(folder).get("routing")
    if not figures or not (budget.TARGET_SHARE or budget.TARGET_GFLOPS):
        return {}
    stem, span = figures["stem_gflops"], figures["all_open_gflops"] - figures["stem_gflops"]
    asked = budget.TARGET_GFLOPS or stem + budget.TARGET_SHARE * span
    return {
        "gflops": 100.0 * (figures["real_gflops"] / asked - 1.0),
        "share": 100.0 * ((figures["real_gflops"] - stem) / (asked - stem) - 1.0),
    }
