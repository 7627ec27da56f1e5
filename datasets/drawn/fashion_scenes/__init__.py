"""Scenes of Fashion-MNIST's photographs, in any number and at any size, with masks and boxes."""

from .generate import make_fashion_scenes
from .scene import CLASSES, Garments, paste_scene

__all__ = ["CLASSES", "Garments", "make_fashion_scenes", "paste_scene"]
