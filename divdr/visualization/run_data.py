"""What a run left in its output folder, as far as pictures need it: figures and routes."""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.execution_modes import ModeFigures, read_modes
from ..engine.run_facts import read_facts
from ..errors import DataError
from ..routing.space import RoutingSpace
from .curves import Metrics, read_metrics
from .parts import runs_words


@dataclass(frozen=True)
class RouteData:
    """Gate activations of N images, with cells in number as the space has.

    Of an image that was seen at several scales or in windows they are its first forward's; its
    costs are the sums of all.

    Attributes:
        file_names: N image files.
        activations: A(x), (N, D).
        reached: (N, cells) bool.
        expected_cost: (N,) multiply-adds.
        real_cost: (N,) multiply-adds.
        expert: (N,) number of the nearest centre, -1 if there is none.
        centres: (K, D); K is 0 for a run without experts.
        space: the routing space.
        all_open_cost: (N,) real cost with every gate open, multiply-adds; None in older files.
        forwards: (N,) how many forwards each image took.
    """

    file_names: list[str]
    activations: np.ndarray
    reached: np.ndarray
    expected_cost: np.ndarray
    real_cost: np.ndarray
    expert: np.ndarray
    centres: np.ndarray
    space: RoutingSpace
    all_open_cost: np.ndarray | None
    forwards: np.ndarray

    def __len__(self) -> int:
        return len(self.file_names)

    @property
    def stems(self) -> list[str]:
        """File names without folder and ending."""
        return [Path(name).stem for name in self.file_names]

    def images_per_expert(self) -> np.ndarray:
        """(K,) number of images of each expert."""
        return np.bincount(self.expert[self.expert >= 0], minlength=len(self.centres))

    def runs_of(self, image: int) -> str:
        """What an image's route runs, in words: ``runs 0.073 of 0.105 GFLOPs``."""
        whole = None if self.all_open_cost is None else float(self.all_open_cost[image])
        text = runs_words(float(self.real_cost[image]), whole)
        forwards = int(self.forwards[image])
        return text if forwards == 1 else f"{text} in {forwards} forwards"

    @classmethod
    def load(cls, path: str | Path) -> RouteData:
        """Read an ``activations_<data set>.npz``.

        Raises:
            DataError: it cannot be read, lacks an array, or the arrays do not fit each other.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
            raise DataError(f"Cannot read {path}: {error}") from error
        try:
            space = RoutingSpace(tuple(int(count) for count in arrays["scales_per_layer"]))
            centres = arrays["centres"].astype(np.float32)
            whole = arrays.get("all_open_cost")
            first = arrays.get("first", _new(arrays["file_names"])).astype(bool)
            data = cls(
                file_names=[str(name) for name in arrays["file_names"]],
                activations=arrays["activations"].astype(np.float32),
                reached=arrays["reached"].astype(bool),
                expected_cost=arrays["expected_cost"].astype(np.float64),
                real_cost=arrays["real_cost"].astype(np.float64),
                expert=arrays["expert"].astype(np.int64),
                centres=centres if centres.size else centres.reshape(0, space.activation_size),
                space=space,
                all_open_cost=None if whole is None else whole.astype(np.float64),
                forwards=np.ones(len(arrays["file_names"]), np.int64),
            )
        except KeyError as error:
            raise DataError(f"{path} has no array {error}.") from error
        except (TypeError, ValueError) as error:
            raise DataError(f"{path} holds values that cannot be right: {error}") from error
        data._check(path)
        if first.shape != (len(data),) or (len(data) and not first[0]):
            raise DataError(f"{path}: first must say which of {len(data)} rows begin an image.")
        return data if first.all() else data._of_images(first)

    def _of_images(self, first: np.ndarray) -> RouteData:
        """A row an image, of a row a forward."""
        begins = np.flatnonzero(first)

        def summed(costs: np.ndarray) -> np.ndarray:
            return np.add.reduceat(costs, begins)

        return replace(
            self,
            file_names=[self.file_names[i] for i in begins],
            activations=self.activations[begins],
            reached=self.reached[begins],
            expected_cost=summed(self.expected_cost),
            real_cost=summed(self.real_cost),
            expert=self.expert[begins],
            all_open_cost=None if self.all_open_cost is None else summed(self.all_open_cost),
            forwards=summed(self.forwards),
        )

    def _check(self, path: str | Path) -> None:
        count, size, cells = len(self), self.space.activation_size, self.space.num_cells
        wanted = {
            "activations": (count, size),
            "reached": (count, cells),
            "expected_cost": (count,),
            "real_cost": (count,),
            "expert": (count,),
            **({} if self.all_open_cost is None else {"all_open_cost": (count,)}),
        }
        for name, shape in wanted.items():
            found = getattr(self, name).shape
            if found != shape:
                raise DataError(f"{path}: {name} has shape {found}, expected {shape}.")
        if self.centres.ndim != 2 or self.centres.shape[1] != size:
            raise DataError(
                f"{path}: centres has shape {self.centres.shape}, expected (K, {size})."
            )
        if count and not -1 <= self.expert.min() <= self.expert.max() < len(self.centres):
            raise DataError(f"{path}: expert names a centre that is not among {len(self.centres)}.")
        for name in ("activations", *(n for n in wanted if n.endswith("_cost")), "centres"):
            if not np.isfinite(getattr(self, name)).all():
                raise DataError(f"{path}: {name} holds infinite values or NaN.")


def _new(names: np.ndarray) -> np.ndarray:
    """Where a file that does not say it begins a new image: where another file's name begins."""
    same = (names[1:] == names[:-1]) & (names[1:] != "")
    return np.concatenate([np.ones(min(len(names), 1), bool), ~same])


_PREFIX = "activations_"


@dataclass(frozen=True)
class RunData:
    """One run; a part that its folder does not have is None.

    Attributes:
        name: what the report calls the run.
        metrics: training curves by key (``read_metrics``).
        results: evaluation results by data set, nested dicts.
        routes: gate activations by data set.
        modes: the same weights run in several modes (``divdr.engine.execution_modes``).
        facts: when, by what and where it was trained (``divdr.engine.run_facts``).
    """

    name: str
    metrics: Metrics | None = None
    results: dict[str, Any] | None = None
    routes: dict[str, RouteData] | None = None
    modes: list[ModeFigures] | None = None
    facts: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def load(cls, folder: str | Path, name: str = "") -> RunData:
        """Read ``metrics.json``, ``inference/results.json``, ``inference/activations_*.npz`` and
        what tools/export_experts.py wrote into ``experts/experts.json``.

        Args:
            folder: the run's output folder.
            name: the folder's own name if empty.

        Raises:
            DataError: no such folder, none of these files is in it, or one is damaged.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder.")
        metrics = _metrics(folder / "metrics.json")
        results = _results(folder / "inference" / "results.json")
        paths = sorted((folder / "inference").glob(f"{_PREFIX}*.npz"))
        routes = {path.stem[len(_PREFIX) :]: RouteData.load(path) for path in paths} or None
        if metrics is None and results is None and routes is None:
            raise DataError(
                f"{folder} holds nothing to report: no training curves in metrics.json, no "
                f"inference/results.json, no inference/{_PREFIX}<data set>.npz."
            )
        table = folder / "experts" / "experts.json"
        modes = read_modes(table) if table.is_file() else None
        name, facts = name or folder.resolve().name, read_facts(folder)
        return cls(name, metrics, results, routes, modes, facts)

    def number(self, dataset_name: str, *keys: str) -> float | None:
        """A finite number among the results of a data set, None if it is not there."""
        value = self.result(dataset_name, *keys)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        return float(value) if math.isfinite(value) else None

    def result(self, dataset_name: str, *keys: str) -> Any:
        """A value among the results of a data set, None if it is not there."""
        value: Any = self.results
        for key in (dataset_name, *keys):
            value = value.get(key) if isinstance(value, dict) else None
        return value

    @property
    def routed(self) -> bool:
        """Whether its backbone decides for each image what runs, as far as its files tell."""
        figures = [(result or {}).get("routing") for result in (self.results or {}).values()]
        return bool(self.routes or any(figures) or "train/real_gflops" in (self.metrics or {}))

    def routes_of(self, dataset_name: str) -> RouteData | None:
        """Routes of the images of a data set; None if there are none."""
        data = (self.routes or {}).get(dataset_name)
        return data if data is not None and len(data) else None


def _metrics(path: Path) -> Metrics | None:
    return (read_metrics(path) or None) if path.is_file() else None


def _results(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"Cannot read {path}: {error}") from error
    if not isinstance(results, dict):
        raise DataError(f"{path} must hold an object with a data set a key.")
    return results or None
