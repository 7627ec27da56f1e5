"""What a run left in its output folder, as far as pictures need it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divdr.engine.ways import WayFigures, read_ways
from divdr.errors import DataError

from .curves import Metrics, read_metrics
from .route_data import RouteData

_PREFIX = "activations_"


@dataclass(frozen=True)
class RunData:
    """One run; a part that its folder does not have is None.

    Attributes:
        name: what the report calls the run.
        metrics: training curves by key (``read_metrics``).
        results: evaluation results by data set, nested dicts.
        routes: gate activations by data set.
        ways: the same weights run in several ways (``divdr.engine.ways``).
    """

    name: str
    metrics: Metrics | None = None
    results: dict[str, Any] | None = None
    routes: dict[str, RouteData] | None = None
    ways: list[WayFigures] | None = None

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
        ways = read_ways(table) if table.is_file() else None
        return cls(name or folder.resolve().name, metrics, results, routes, ways)

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
