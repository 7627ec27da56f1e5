"""Costs between which a trained model can be set, without training.

A threshold closes the transforms whose gates are open least. Which threshold leads to which cost is
found by ``divdr.engine.calibration``; here the findings of a model are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import CheckpointError, ConfigError

KEY = "MODEL.ROUTING.DIAL"


@dataclass(frozen=True)
class DialSetting:
    """One calibrated cost of a model.

    Attributes:
        threshold: of the gates, in logits (``Gate``).
        share: mean real cost of the calibration images, as a share of the all-open one, both
            without the stem.
        gflops: their mean real cost, stem included, in 10⁹ multiply-adds.
        centres: (K, D) of the local experts at it; None without experts.
    """

    threshold: float
    share: float
    gflops: float
    centres: Tensor | None = None


class CostDial:
    """Calibrated settings of one model, from the cheapest to the dearest.

    Args:
        settings: at least two, of different cost.

    Raises:
        ConfigError: they are fewer, or two of them cost the same.
    """

    def __init__(self, settings: Sequence[DialSetting]) -> None:
        self.settings = tuple(sorted(settings, key=lambda setting: setting.share))
        shares = [setting.share for setting in self.settings]
        if len(shares) < 2 or not all(low < high for low, high in pairwise(shares)):
            raise ConfigError("a dial needs at least two settings whose real costs differ")

    def at(self, position: float) -> DialSetting:
        """The setting at a position between the cheapest, 0, and the dearest, 1.

        Positions are even steps in real share. Between calibrated settings threshold, cost and
        centres are interpolated, so that the cost met there is near the one told.

        Raises:
            ConfigError: the position is not between 0 and 1.
        """
        if not 0.0 <= position <= 1.0:
            raise ConfigError(f"{KEY} is a number from 0 to 1, not {position}")
        shares = [setting.share for setting in self.settings]
        share = shares[0] + position * (shares[-1] - shares[0])
        upper = min(max(1, int(np.searchsorted(shares, share))), len(shares) - 1)
        low, high = self.settings[upper - 1], self.settings[upper]
        weight = (share - low.share) / (high.share - low.share)

        def between(a: Any, b: Any) -> Any:
            return a + weight * (b - a)

        known = low.centres is not None and high.centres is not None
        return DialSetting(
            threshold=between(low.threshold, high.threshold),
            share=share,
            gflops=between(low.gflops, high.gflops),
            centres=between(low.centres, high.centres) if known else None,
        )

    def state_dict(self) -> list[dict[str, Any]]:
        """Plain numbers and tensors, for a checkpoint."""
        return [
            {
                "threshold": setting.threshold,
                "share": setting.share,
                "gflops": setting.gflops,
                "centres": None if setting.centres is None else setting.centres.cpu().clone(),
            }
            for setting in self.settings
        ]

    @classmethod
    def from_state(cls, state: Any) -> CostDial:
        """What :meth:`state_dict` gave.

        Raises:
            CheckpointError: it is something else.
        """
        try:
            return cls([_setting(entry) for entry in state])
        except (ConfigError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint's dial cannot be read ({error!r})") from None


def _setting(entry: Mapping[str, Any]) -> DialSetting:
    threshold, share, gflops = (float(entry[n]) for n in ("threshold", "share", "gflops"))
    if not np.isfinite([threshold, share, gflops]).all():
        raise ValueError("a number is not finite")
    centres = entry["centres"]
    if centres is not None and not isinstance(centres, Tensor):
        raise TypeError("centres are no tensor")
    return DialSetting(threshold, share, gflops, centres)
