"""What ``divdr study`` does: plan, train, write tables and pictures."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from ..checkpoint import write_text_atomically
from .definition import Study
from .execution import execute
from .oracle import oracle_markdown, read_scores
from .pictures import write_pictures
from .planning import Run, plan
from .reading import find_study, list_studies
from .tables import (
    Numbers,
    collect,
    common_seeds,
    differences,
    pairs_markdown,
    summaries,
    table_csv,
    table_markdown,
)


def list_all(root: Path) -> None:
    """Print the studies of a folder, and the minutes that they take.

    Args:
        root: has ``configs/studies``.
    """
    for study in list_studies(root):
        print(f"{study.name:32} {study.minutes:4g} min  {study.title}")


def run_study(
    root: Path,
    name: str,
    output: Path,
    *,
    jobs: int = 2,
    seeds: Sequence[int] = (),
    only: Sequence[str] = (),
    iterations: int | None = None,
) -> int:
    """Run a study, write and show its tables; the exit status.

    Args:
        root: the repository, or another folder with ``configs``.
        name: of the study, or its file.
        output: folder of all studies.
        jobs: trainings at once.
        seeds: in place of the study's.
        only: variants that are trained; none named: all.
        iterations: of each training; None: as configured.

    Raises:
        DivdrError: the study or its data cannot be used.
    """
    study = find_study(root, name)
    if seeds:
        study = replace(study, seeds=tuple(dict.fromkeys(seeds)))
    folder = output / study.name
    if iterations:
        folder = output / f"{study.name}_{iterations}_iterations"
    runs = plan(study, root, output / "runs", iterations)
    names = [study.variant(variant).name for variant in only or runs]
    wanted = [run for variant in names for run in runs[variant].values()]
    with _exit_on_kill():
        failed = execute(wanted, root, output / "data", jobs)
    for text in failed:
        print(f"error: {text}", file=sys.stderr)
    write_study(study, runs, folder)
    return 1 if failed else 0


@contextmanager
def _exit_on_kill() -> Iterator[None]:
    """Let a kill run through ``finally``, so that it leaves no training behind."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def write_study(study: Study, runs: Mapping[str, Mapping[int, Run]], folder: Path) -> None:
    """Write numbers, tables, pictures and links to the runs, of what is finished, and show the
    tables.

    Args:
        study: the study.
        runs: by variant and seed.
        folder: where everything goes.

    Raises:
        ConfigError: see ``collect``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _link(study, runs, folder)
    numbers = collect(study, runs)
    _write_numbers(study, runs, numbers, folder)
    write_text_atomically(folder / "table.csv", table_csv(study, numbers))
    texts = {"table.md": table_markdown(study, numbers)}
    if study.pairs:
        texts["pairs.md"] = pairs_markdown(study, numbers)
    seeds = common_seeds(numbers, study.oracle)
    if seeds:
        of = {s: read_scores([runs[v][s].folder for v in study.oracle]) for s in seeds}
        texts["oracle.md"] = oracle_markdown(study.title, study.oracle, of)
    for name, text in texts.items():
        write_text_atomically(folder / name, text)
        print(text)
    for path in write_pictures(study, runs, numbers, folder):
        print(path)
    print(f"Everything is in {folder}")


def _link(study: Study, runs: Mapping[str, Mapping[int, Run]], folder: Path) -> None:
    for variant, by_seed in runs.items():
        place = folder / "runs" / study.variant(variant).file_name
        place.mkdir(parents=True, exist_ok=True)
        for seed, run in by_seed.items():
            link = place / f"seed_{seed}"
            link.unlink(missing_ok=True)
            if run.finished():
                link.symlink_to(os.path.relpath(run.folder, place), target_is_directory=True)


def _write_numbers(
    study: Study, runs: Mapping[str, Mapping[int, Run]], numbers: Numbers, folder: Path
) -> None:
    content = {
        "title": study.title,
        "runs": [
            {
                "variant": variant,
                "seed": seed,
                "run": runs[variant][seed].key,
                "numbers": own,
            }
            for variant, by_seed in numbers.items()
            for seed, own in by_seed.items()
        ],
        "summaries": {
            variant: {key: asdict(summary) for key, summary in own.items()}
            for variant, own in summaries(study, numbers).items()
        },
        "pairs": [
            {"from": a, "to": b, "metric": metric.key, **asdict(difference)}
            for a, b, metric, difference in differences(study, numbers)
        ],
    }
    write_text_atomically(folder / "results.json", json.dumps(content, indent=1))
