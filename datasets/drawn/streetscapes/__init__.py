"""Drawn street scenes in the layout of Cityscapes, for trying things out without its licence."""

from .draw import draw_scene
from .generate import make_streetscapes
from .scene import CHARACTERS

__all__ = ["CHARACTERS", "draw_scene", "make_streetscapes"]
