"""Trees in airborne photographs, with boxes: a small COCO-format data set of real images."""

from divdr.data.catalog import SPLITS

from .prepare import prepare_neon_trees

__all__ = ["SPLITS", "prepare_neon_trees", "register_neon_trees"]
