"""Known subsets of the training images, in place of those that K-means finds."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from .kmeans import KMeansResult


class KnownLabels:
    """The subset of every image by its key: the oracle against which experts are measured.

    Args:
        labels: subset, from 0, by key: an image's whole key, or the name of its file without folder
            and ending.

    Raises:
        DataError: a label is no whole number from 0 on.
    """

    def __init__(self, labels: Mapping[str, int]) -> None:
        for key, label in labels.items():
            if isinstance(label, bool) or not isinstance(label, int) or label < 0:
                raise DataError(f"the label of image {key!r} must be 0, 1, …, not {label!r}")
        self._labels = dict(labels)

    @classmethod
    def from_file(cls, path: str) -> KnownLabels:
        """Read a JSON object {key: label}; environment variables in the path are filled in.

        Raises:
            ConfigError: there is no such file.
            DataError: the file holds something else.
        """
        place = os.path.expandvars(os.path.expanduser(path))
        try:
            with open(place, encoding="utf-8") as file:
                content = json.load(file)
        except OSError:
            raise ConfigError(
                f"MODEL.ROUTING.CLUSTERING.LABELS names {place}, which cannot be read"
            ) from None
        except ValueError as error:
            raise DataError(f"{place} is no JSON file ({error})") from None
        if not isinstance(content, dict):
            raise DataError(f"{place} must hold one JSON object, image name to label")
        return cls(content)

    def of(self, keys: Sequence[str], num_experts: int) -> Tensor:
        """Labels (N,) of int64, all below ``num_experts``.

        Raises:
            DataError: an image has no label.
            ConfigError: a label has no expert.
        """
        found = [self._label(key) for key in keys]
        if found and max(found) >= num_experts:
            raise ConfigError(
                f"a label is {max(found)}, but MODEL.ROUTING.CLUSTERING.NUM_EXPERTS is "
                f"{num_experts}"
            )
        return torch.tensor(found, dtype=torch.long)

    def cluster(self, keys: Sequence[str], x: Tensor, num_experts: int) -> KMeansResult | None:
        """What K-means would return, had it found the known subsets; centre k is the mean of k.

        Args:
            keys: of the images, N.
            x: their points (N, D).
            num_experts: K.

        Returns:
            None while a subset has no image.

        Raises:
            DivdrError: see :meth:`of`.
        """
        subset = self.of(keys, num_experts).to(x.device)
        counts = torch.bincount(subset, minlength=num_experts)
        if bool((counts == 0).any()):
            return None
        sums = torch.zeros(num_experts, x.shape[1], dtype=torch.float64, device=x.device)
        centres = (sums.index_add(0, subset, x.double()) / counts[:, None]).to(x)
        return KMeansResult(centres, subset, float((x - centres[subset]).square().sum()))

    def _label(self, key: str) -> int:
        if key in self._labels:
            return self._labels[key]
        name = os.path.basename(key).removeprefix("#")  # of an image without a file, its id
        for short in (os.path.splitext(name)[0], name):
            if short in self._labels:
                return self._labels[short]
        raise DataError(f"image {key} has no label among the known subsets")
