"""How scenes of known subsets look, whichever kind is drawn."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """Settings of all scenes of a data set.

    Attributes:
        subsets: K.
        dial: in [0, 1], how hard the subset is to tell.
        nuisance: in [0, 1], how much images of one subset differ in what does not matter.
    """

    subsets: int = 3
    dial: float = 0.5
    nuisance: float = 0.0
