"""The command-line program behind ``tools/study.py``."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from ..checkpoint import write_text_atomically
from ..engine.setup import at_least
from .definition import Study
from .execution import execute
from .pictures import write_pictures
from .planning import Run, plan
from .reading import find_study, list_studies
from .tables import (
    Numbers,
    collect,
    differences,
    pairs_markdown,
    summaries,
    table_csv,
    table_markdown,
)


def main(root: Path, arguments: Sequence[str] | None = None) -> int:
    """Run a study, or list them; the exit status.

    Args:
        root: the repository.
        arguments: of the command line; None takes this process's.

    Raises:
        DivdrError: the study or its data cannot be used.
    """
    args = _parser().parse_args(arguments)
    if args.list or not args.name:
        for study in list_studies(root):
            print(f"{study.name:32} {study.minutes:4g} min  {study.title}")
        return 0
    study = find_study(root, args.name)
    if args.seeds:
        study = replace(study, seeds=tuple(dict.fromkeys(args.seeds)))
    output = (root / args.output).resolve()
    folder = output / study.name
    if args.iterations:
        folder = output / f"{study.name}_{args.iterations}_iterations"
    runs = plan(study, root, output / "runs", args.iterations)
    only = [study.variant(name).name for name in args.only or runs]
    wanted = [run for name in only for run in runs[name].values()]
    with _exit_on_kill():
        failed = execute(wanted, root, output / "data", args.jobs)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train, compare and draw what a study names.")
    parser.add_argument("name", nargs="?", help="of configs/studies/NAME.yaml, or a file")
    parser.add_argument("--list", action="store_true", help="tell the studies and what they need")
    parser.add_argument(
        "--jobs", type=at_least(1), default=2, help="trainings at once, a thread each"
    )
    parser.add_argument("--seeds", type=at_least(0), nargs="+", help="in place of the study's")
    parser.add_argument("--only", action="append", metavar="VARIANT", help="train these alone")
    parser.add_argument(
        "--iterations", type=at_least(1), help="of each training; goes to another folder"
    )
    parser.add_argument("--output", default="output/studies", help="folder of all studies")
    return parser
