"""Drawn scenes in the layout of COCO 2017, so that every task of Detectron2 can be tried out."""

from .draw import draw_scene
from .generate import make_shapes_coco

__all__ = ["draw_scene", "make_shapes_coco"]
