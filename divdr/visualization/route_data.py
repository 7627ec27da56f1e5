"""Routes of a whole data set, as the evaluator stores them."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from divdr.errors import DataError
from divdr.routing.space import RoutingSpace


@dataclass(frozen=True)
class RouteData:
    """Gate activations of N images, with cells in number as the space has.

    Attributes:
        file_names: N image files.
        activations: A(x), (N, D).
        reached: (N, cells) bool.
        expected_cost: (N,) multiply-adds.
        real_cost: (N,) multiply-adds.
        expert: (N,) number of the nearest centre, -1 if there is none.
        centres: (K, D); K is 0 for a run without experts.
        space: the routing space.
    """

    file_names: list[str]
    activations: np.ndarray
    reached: np.ndarray
    expected_cost: np.ndarray
    real_cost: np.ndarray
    expert: np.ndarray
    centres: np.ndarray
    space: RoutingSpace

    def __len__(self) -> int:
        return len(self.file_names)

    @property
    def stems(self) -> list[str]:
        """File names without folder and ending."""
        return [Path(name).stem for name in self.file_names]

    def images_per_expert(self) -> np.ndarray:
        """(K,) number of images of each expert."""
        return np.bincount(self.expert[self.expert >= 0], minlength=len(self.centres))

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
            data = cls(
                file_names=[str(name) for name in arrays["file_names"]],
                activations=arrays["activations"].astype(np.float32),
                reached=arrays["reached"].astype(bool),
                expected_cost=arrays["expected_cost"].astype(np.float64),
                real_cost=arrays["real_cost"].astype(np.float64),
                expert=arrays["expert"].astype(np.int64),
                centres=centres if centres.size else centres.reshape(0, space.activation_size),
                space=space,
            )
        except KeyError as error:
            raise DataError(f"{path} has no array {error}.") from error
        except (TypeError, ValueError) as error:
            raise DataError(f"{path} holds values that cannot be right: {error}") from error
        data._check(path)
        return data

    def _check(self, path: str | Path) -> None:
        count, size, cells = len(self), self.space.activation_size, self.space.num_cells
        wanted = {
            "activations": (count, size),
            "reached": (count, cells),
            "expected_cost": (count,),
            "real_cost": (count,),
            "expert": (count,),
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
        for name in ("activations", "expected_cost", "real_cost", "centres"):
            if not np.isfinite(getattr(self, name)).all():
                raise DataError(f"{path}: {name} holds infinite values or NaN.")
