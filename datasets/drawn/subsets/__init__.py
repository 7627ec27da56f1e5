"""Drawn scenes of known subsets, each with rules of its own: data for controlled studies."""

from .generate import KINDS, make_subsets

__all__ = ["KINDS", "make_subsets"]
