"""Image classification: data sets in their published formats, folders of classes, and the mapper.

A dataset dict holds "label" (a number from 0), "image_id", and either "file_name" or "pixels", an
array (H, W) or (H, W, 3) in RGB.
"""

from .alphabets import register_alphabets
from .class_sets import ClassificationMapper, classification_batches, describe, register_published
from .formats import read_fashion_mnist

__all__ = [
    "ClassificationMapper",
    "classification_batches",
    "describe",
    "read_fashion_mnist",
    "register_alphabets",
    "register_published",
]
