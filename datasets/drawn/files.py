"""Data sets that a generator draws into a folder: safe files, a record, several processes.

The record says which images were made with which settings and whether all are there. It tells what
a generator may replace from what it must not touch.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
from tqdm import tqdm

from divdr.data.drawn_sets import SPLITS, read_record
from divdr.errors import ConfigError, DataError

PARTIAL = ".partial"


def check_counts(*, seed: int, **counts: int) -> None:
    """Raises ConfigError if a count is below 1 or the seed negative; names are those given."""
    for name, value in counts.items():
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}.")
    if seed < 0:
        raise ConfigError(f"seed must not be negative, but is {seed}.")


def available_cores() -> int:
    """Number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def write_atomically(path: Path, content: bytes, partial: Path) -> None:
    """Writes a file so that it either has all its content or does not exist.

    Args:
        partial: folder of the same file system where the file grows. Not the folder of ``path``:
            Detectron2 takes every file beside the images for an image.
    """
    partial.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    growing = partial / f"{os.getpid()}_{path.name}"
    growing.write_bytes(content)
    os.replace(growing, path)


@dataclass(frozen=True)
class DrawnSet:
    """A folder with a drawn data set.

    Attributes:
        folder: where everything lies; all other paths are relative to it.
        record_name: name of the JSON file with the record.
        version: to be raised whenever the same settings would give different files.
        image_files: from split and image name to all files of that image.
        own_folders: folders in which nothing but files of this data set may lie.
        summaries: files about all images together.
    """

    folder: Path
    record_name: str
    version: int
    image_files: Callable[[str, str], Sequence[Path]]
    own_folders: tuple[Path, ...]
    summaries: tuple[Path, ...] = ()

    def read(self) -> dict[str, Any] | None:
        """The record, or None if there is none.

        Raises:
            DataError: the record cannot be understood.
        """
        return read_record(self.folder, self.record_name)

    def write_json(self, path: str | Path, content: Any, indent: int | None = 1) -> None:
        """Writes JSON atomically to a path below the folder."""
        text = json.dumps(content, indent=indent) + "\n"
        write_atomically(self.folder / path, text.encode(), self.folder / PARTIAL)

    def prepare(self, settings: Mapping[str, Any], images: Mapping[str, list[str]]) -> set[Path]:
        """Makes room for a data set with these settings and image names per split.

        Whatever an interrupted run, or one with other settings, left is removed. If something is
        to be made, the record then says that the data set is not complete.

        Returns:
            The files that have to be made, summaries included, relative to the folder.

        Raises:
            DataError: the folder has files that the generator did not make.
        """
        record = self._record(settings, images)
        earlier = self.read()
        known = self._files(earlier) if earlier else set()
        self._refuse_foreign(known)
        if earlier != {**record, "complete": True}:
            self._clear(known)
        missing = {path for path in self._files(record) if self._is_missing(path)}
        if missing:
            self.write_json(self.record_name, record)
        return missing

    def finish(self, settings: Mapping[str, Any], images: Mapping[str, list[str]]) -> None:
        """Records that everything has been made."""
        self.write_json(self.record_name, {**self._record(settings, images), "complete": True})
        shutil.rmtree(self.folder / PARTIAL, ignore_errors=True)

    def _record(
        self, settings: Mapping[str, Any], images: Mapping[str, list[str]]
    ) -> dict[str, Any]:
        return {
            "version": self.version,
            "settings": dict(settings),
            "images": {split: list(images[split]) for split in SPLITS},
            "complete": False,
        }

    def _files(self, record: dict[str, Any]) -> set[Path]:
        files = {
            path
            for split in SPLITS
            for name in record["images"][split]
            for path in self.image_files(split, name)
        }
        return files | set(self.summaries)

    def jobs_for(self, missing: set[Path], plans: Mapping[str, Sequence[Any]]) -> list[Any]:
        """Jobs, each with a ``name``, whose image lacks a file.

        Args:
            missing: files, as ``prepare`` gives them.
            plans: jobs of each split.
        """
        return [
            job
            for split in SPLITS
            for job in plans[split]
            if not missing.isdisjoint(self.image_files(split, job.name))
        ]

    def _is_missing(self, path: Path) -> bool:
        place = self.folder / path
        return not place.is_file() or place.stat().st_size == 0

    def _refuse_foreign(self, known: set[Path]) -> None:
        present = (
            path.relative_to(self.folder)
            for top in self.own_folders
            for path in (self.folder / top).rglob("*")
            if not path.is_dir()
        )
        foreign = min((path for path in present if path not in known), default=None)
        if foreign:
            raise DataError(
                f"{self.folder} holds {foreign}, which this generator did not make; "
                "choose another output folder."
            )

    def _clear(self, files: set[Path]) -> None:
        for path in files:
            (self.folder / path).unlink(missing_ok=True)
        for path in {path.parent for path in files}:
            with contextlib.suppress(OSError):  # other things are in it, or it is gone
                (self.folder / path).rmdir()
        shutil.rmtree(self.folder / PARTIAL, ignore_errors=True)


def run_jobs(jobs: Sequence[Any], make: Callable[[Any], Any], workers: int, what: str) -> list[Any]:
    """Results of ``make`` for every job, in order, with a progress bar that says ``what`` is made.

    Args:
        jobs: what ``make`` is called with.
        make: runs in the given number of processes.
        workers: that number.
        what: for the progress bar.
    """
    with _finished(jobs, make, workers) as finished:
        return list(tqdm(finished, total=len(jobs), desc=what, unit="image"))


@contextlib.contextmanager
def _finished(
    jobs: Sequence[Any], make: Callable[[Any], Any], workers: int
) -> Iterator[Iterator[Any]]:
    if workers == 1 or len(jobs) <= 1:
        yield map(make, jobs)
        return
    # Forked processes need not import everything again, which takes longer than many images.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    # The processes share the cores already; and forks must not inherit OpenCV's threads.
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), context, initializer=cv2.setNumThreads, initargs=(1,)
    )
    try:
        yield pool.map(make, jobs, chunksize=max(1, min(8, len(jobs) // (4 * workers))))
    finally:
        pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(threads)
