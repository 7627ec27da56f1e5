"""Drawn scenes of known subsets, each with rules of its own: data for controlled studies."""

from .catalog import CLASSES, MAX_SUBSETS, register_subsets, subset_names
from .generate import KINDS, make_subsets
from .record import load_subsets

__all__ = [
    "CLASSES",
    "KINDS",
    "MAX_SUBSETS",
    "load_subsets",
    "make_subsets",
    "register_subsets",
    "subset_names",
]
