"""Mixtures of experts as segmentation heads."""

from .single_gate_segmentor import SingleGateSegmentor, segmentation_mixture_of
from .windows import Windows

__all__ = ["SingleGateSegmentor", "Windows", "segmentation_mixture_of"]
