"""The numbers of finished runs."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from pkgutil import resolve_name
from typing import Any

from ..errors import ConfigError
from .definition import Study
from .planning import Run

#: Numbers by dotted key, by variant and seed.
Numbers = dict[str, dict[int, dict[str, float]]]


def collect(study: Study, runs: Mapping[str, Mapping[int, Run]]) -> Numbers:
    """All numbers of all finished runs.

    Args:
        study: its scores are worked out too.
        runs: by variant and seed.

    Returns:
        By variant and seed, the results of the first test data set by dotted key, and those of
        scores as "SCORE.NUMBER". Runs that are not finished are left out.

    Raises:
        ConfigError: a score cannot be found, no run is finished, or the finished ones do not have a
            metric of the study.
    """
    scores = {name: _score(name, where) for name, where in study.scores.items()}
    found: Numbers = {}
    for variant, by_seed in runs.items():
        found[variant] = {}
        for seed, run in by_seed.items():
            if not run.finished():
                continue
            results = (run.results() or {}).get(run.cfg.DATASETS.TEST[0], {})
            numbers = _flat(results)
            for name, score in scores.items():
                numbers |= {f"{name}.{k}": float(v) for k, v in score(run.folder).items()}
            found[variant][seed] = numbers
    _check(study, found)
    return found


def values(numbers: Mapping[int, Mapping[str, float]], key: str) -> dict[int, float]:
    """A metric's finite values by seed."""
    found = {seed: own[key] for seed, own in numbers.items() if key in own}
    return {seed: value for seed, value in found.items() if math.isfinite(value)}


def _check(study: Study, found: Numbers) -> None:
    known = {key for by_seed in found.values() for own in by_seed.values() for key in own}
    if not known:
        raise ConfigError(f"no run of study {study.name} is finished")
    for metric in study.metrics:
        if metric.key not in known:
            close = difflib.get_close_matches(metric.key, sorted(known), n=1, cutoff=0.4)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"no result of study {study.name} is called {metric.key}{hint}")


def _score(name: str, where: str) -> Any:
    try:
        return resolve_name(where)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"score {name}: {where!r} cannot be found ({error})") from None


def _flat(results: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[f"{prefix}{key}"] = float(value)
    return found
