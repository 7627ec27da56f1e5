"""Numbers of a study's finished runs, and tables of them: variants, and pairs."""

from __future__ import annotations

import csv
import difflib
import io
import logging
import math
from collections.abc import Mapping, Sequence
from pkgutil import resolve_name
from typing import Any

from tabulate import tabulate

from ..errors import ConfigError
from .definition import Metric, Study
from .planning import Run
from .statistics import NOTHING, Difference, Summary, paired_difference, summarise

logger = logging.getLogger(__name__)
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
        ConfigError: a score cannot be found, no run is finished, or every variant has finished runs
            and none of them has some metric of the study. Before that it is a warning.
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


def common_seeds(numbers: Numbers, variants: Sequence[str]) -> list[int]:
    """Seeds that all variants have finished, rising; none of no variant."""
    finished = [set(numbers.get(variant, {})) for variant in variants]
    return sorted(set.intersection(*finished)) if finished else []


def _check(study: Study, found: Numbers) -> None:
    known = {key for by_seed in found.values() for own in by_seed.values() for key in own}
    if not known:
        raise ConfigError(f"no run of study {study.name} is finished")
    for metric in study.metrics:
        if metric.key not in known:
            close = difflib.get_close_matches(metric.key, sorted(known), n=1, cutoff=0.4)
            hint = f"; did you mean {close[0]}?" if close else ""
            text = f"no result of study {study.name} is called {metric.key}{hint}"
            if all(found.values()):
                raise ConfigError(text)
            # A static network has no cost target to miss; a variant that is still to come may.
            logger.warning("%s", text)


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


def summaries(study: Study, numbers: Numbers) -> dict[str, dict[str, Summary]]:
    """For each variant with finished runs, each metric that they have."""
    found: dict[str, dict[str, Summary]] = {}
    for variant, by_seed in numbers.items():
        if by_seed:
            own = {m.key: list(values(by_seed, m.key).values()) for m in study.metrics}
            found[variant] = {key: summarise(v) for key, v in own.items() if v}
    return found


def differences(study: Study, numbers: Numbers) -> list[tuple[str, str, Metric, Difference]]:
    """For each pair (a, b) and metric, how much b exceeds a over the seeds that both have."""
    found = []
    for a, b in study.pairs:
        for metric in study.metrics:
            left, right = values(numbers[a], metric.key), values(numbers[b], metric.key)
            seeds = [seed for seed in left if seed in right]
            if seeds:
                difference = paired_difference([left[s] for s in seeds], [right[s] for s in seeds])
                found.append((a, b, metric, difference))
    return found


def table_csv(study: Study, numbers: Numbers) -> str:
    """A row a variant: seeds, then mean and standard deviation of each metric, unrounded."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = [f"{m.label} {part}" for m in study.metrics for part in ("mean", "std")]
    writer.writerow(["variant", "seeds", *heads])
    for variant, own in summaries(study, numbers).items():
        row: list[object] = [variant, len(numbers[variant])]
        for metric in study.metrics:
            summary = own.get(metric.key)
            row += [_number(summary.mean), _number(summary.std)] if summary else ["", ""]
        writer.writerow(row)
    return text.getvalue()


def table_markdown(study: Study, numbers: Numbers) -> str:
    """The same for people: mean ± standard deviation, rounded."""
    rows = []
    for variant, own in summaries(study, numbers).items():
        cells = [own[m.key].text(m.digits) if m.key in own else NOTHING for m in study.metrics]
        rows.append([variant, len(numbers[variant]), *cells])
    heads = ["variant", "seeds", *(m.label for m in study.metrics)]
    table = tabulate(rows, heads, tablefmt="github", disable_numparse=True)
    return f"# {study.title}\n\nMean ± standard deviation over seeds.\n\n{table}\n"


def pairs_markdown(study: Study, numbers: Numbers) -> str:
    """Paired differences with 95 % confidence intervals, a row a pair and metric."""
    rows = []
    for a, b, metric, difference in differences(study, numbers):
        rows.append(
            [
                f"{b} − {a}",
                metric.label,
                difference.text(metric.digits),
                difference.interval(metric.digits),
                difference.n,
            ]
        )
    heads = ["pair", "metric", "difference", "95 % interval", "n"]
    table = tabulate(rows, heads, tablefmt="github", disable_numparse=True)
    shared = "seed, weights at the start and batches"
    if study.fork:
        share = f"{study.fork:.0%} of training" if study.fork < 1 else f"iteration {study.fork:g}"
        shared = f"seed, everything until {share}, and batches"
    return (
        f"# {study.title}: paired differences\n\nThe runs of a pair share {shared}; the interval "
        f"is Student's t over the differences of n seeds.\n\n{table}\n"
    )


def _number(value: float) -> str:
    return "" if math.isnan(value) else repr(value)
