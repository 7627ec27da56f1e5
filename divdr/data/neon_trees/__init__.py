"""Trees in airborne photographs, with boxes: a small COCO-format data set of real images."""

from ..catalog import SPLITS, register_neon_trees
from .prepare import prepare_neon_trees

__all__ = ["SPLITS", "prepare_neon_trees", "register_neon_trees"]
