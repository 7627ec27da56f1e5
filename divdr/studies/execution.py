"""Training the runs of a study, several at once, trunks first, with their progress."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from ..engine.console import main_figures
from ..errors import DataError
from .planning import Job, Run
from .reading import make_data

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
    bar.set_postfix(main_figures(values))
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


_POLL = 0.5  # seconds


def unfinished(runs: Iterable[Run]) -> list[Run]:
    """The runs that are left to train, each once and after those it needs, which come along."""
    left: dict[str, Run] = {}

    def add(run: Run) -> None:
        if not run.finished():
            for need in run.needs:
                add(need)
            left.setdefault(run.key, run)

    for run in runs:
        add(run)
    trunks_first = sorted(left.values(), key=lambda run: run.trunk is not None)
    return list(trunks_first)


def execute(runs: Iterable[Run], root: Path, data_store: Path, jobs: int = 2) -> list[str]:
    """Train what is not finished.

    Args:
        runs: of a study.
        root: the repository.
        data_store: folder of data sets, which are made if need be.
        jobs: processes at once, with one thread each.

    Returns:
        For each run that failed a text with the end of its output; the others are finished.

    Raises:
        DataError: a data set could not be made.
    """
    left = unfinished(runs)
    if not left:
        return []
    environments = {}
    for data in dict.fromkeys(run.data for run in left):
        environments[data] = dict(os.environ)
        if data:
            environments[data]["DETECTRON2_DATASETS"] = str(make_data(data, data_store, root))
    return _Pool(left, root, environments, jobs).run()


class _Pool:
    def __init__(self, left: Sequence[Run], root: Path, environments: dict, jobs: int) -> None:
        self.waiting = list(left)
        self.root = root
        self.environments = environments
        self.slots: list[tuple[Job, tqdm] | None] = [None] * max(1, jobs)
        self.failed: dict[str, str] = {}
        self.total = tqdm(
            desc=f"{len(left)} runs",
            unit="it",
            total=sum(run.iterations for run in left),
            mininterval=1.0 if sys.stderr.isatty() else 60.0,
        )
        self.done = 0

    def run(self) -> list[str]:
        try:
            while self.waiting or any(self.slots):
                for place, slot in enumerate(self.slots):
                    if slot is not None and slot[0].ended():
                        self._close(place)
                    if self.slots[place] is None:
                        self._start(place)
                self._show()
                time.sleep(_POLL)
        finally:
            for slot in self.slots:
                if slot is not None:
                    slot[0].stop()
                    slot[1].close()
            self.total.close()
        return list(self.failed.values())

    def _start(self, place: int) -> None:
        for run in list(self.waiting):
            if run.finished():  # by another study's process
                self._leave(run)
            elif any(need.key in self.failed for need in run.needs):
                what = "trunk" if run.source is None else "source"
                self.failed[run.key] = f"{run.name} was not trained: its {what} failed"
                self._leave(run)
            elif all(need.finished() for need in run.needs):
                try:
                    job = Job(run, self.root, self.environments[run.data])
                except BlockingIOError:  # another study's process trains it
                    continue
                except DataError as error:
                    self.failed[run.key] = f"{run.name} was not trained: {error}"
                    self._leave(run)
                    continue
                self.waiting.remove(run)
                bar = tqdm(
                    desc=run.name,
                    unit="it",
                    position=place + 1,
                    total=run.iterations,
                    leave=False,
                    disable=None,
                )
                self.slots[place] = (job, bar)
                return

    def _leave(self, run: Run) -> None:
        self.waiting.remove(run)
        self.done += run.iterations

    def _close(self, place: int) -> None:
        slot = self.slots[place]
        assert slot is not None
        job, bar = slot
        bar.close()
        self.slots[place] = None
        self.done += job.run.iterations
        if job.close():
            self.total.write(f"{job.run.name}: done")
        else:
            text = f"{job.run.name} failed; the end of {job.run.folder}/console.txt:"
            self.failed[job.run.key] = f"{text}\n{job.last_words()}"
            self.total.write(f"{job.run.name}: failed")

    def _show(self) -> None:
        now = self.done
        for slot in self.slots:
            if slot is not None:
                job, bar = slot
                start = job.run.trunk.cfg.SOLVER.STOP_ITER if job.run.trunk else 0
                now += advance(bar, job.run.folder, start)
        self.total.update(max(0, now - self.total.n))
