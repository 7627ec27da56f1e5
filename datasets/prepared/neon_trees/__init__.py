"""Trees in airborne photographs, with boxes: a small COCO-format data set of real images."""

from divdr.data.catalog import NEON_SPLITS

from .prepare import prepare_neon_trees

__all__ = ["NEON_SPLITS", "prepare_neon_trees", "register_neon_trees"]
