"""Data sets: registration, mappers, and a training loader that can be continued exactly."""

from .catalog import check_datasets, register_segmentation_folder
from .loader import build_mapper, build_train_loader, seed_everything, training_dicts
from .mapper import SemanticCropMapper

__all__ = [
    "SemanticCropMapper",
    "build_mapper",
    "build_train_loader",
    "check_datasets",
    "register_segmentation_folder",
    "seed_everything",
    "training_dicts",
]
