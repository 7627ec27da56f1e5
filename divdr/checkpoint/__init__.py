"""Weights: own checkpoints, and those of the published Dynamic Routing code."""

from .files import (
    is_whole,
    read_weights,
    weight_file,
    write_atomically,
    write_checkpoint,
    write_text_atomically,
)
from .fit import find_weights, load_exactly, read_part, rename
from .pixels import PUBLISHED_PIXELS, Pixels, adapt_first_convolution
from .published import convert_backbone, convert_decoder, convert_model
from .sharing import without_training

__all__ = [
    "PUBLISHED_PIXELS",
    "Pixels",
    "adapt_first_convolution",
    "convert_backbone",
    "convert_decoder",
    "convert_model",
    "find_weights",
    "is_whole",
    "load_exactly",
    "read_part",
    "read_weights",
    "rename",
    "weight_file",
    "without_training",
    "write_atomically",
    "write_checkpoint",
    "write_text_atomically",
]
