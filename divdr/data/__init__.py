"""Data sets: registration, mappers, and a training loader that can be continued exactly."""

import os

from .catalog import (
    build_bank_loader,
    build_test_loader,
    check_datasets,
    evaluation_dicts,
    read_once,
    register_neon_trees,
    training_dicts,
)
from .class_frequencies import ClassFrequencies, count_classes
from .classification import (
    ClassificationMapper,
    classification_batches,
    describe,
    register_alphabets,
    register_published,
)
from .coco_json import supercategories
from .custom import located_entries, register_custom, use_custom_data
from .drawn_sets import (
    load_characters,
    load_needs,
    load_scenes,
    load_subsets,
    register_subsets,
)
from .folders import register_class_folders, register_segmentation_folder
from .loader import annotated_images, build_mapper, build_train_loader, seed_everything
from .mapper import SemanticCropMapper
from .preflight import check_data

__all__ = [
    "ClassFrequencies",
    "ClassificationMapper",
    "SemanticCropMapper",
    "annotated_images",
    "build_bank_loader",
    "build_mapper",
    "build_test_loader",
    "build_train_loader",
    "check_data",
    "check_datasets",
    "classification_batches",
    "count_classes",
    "describe",
    "evaluation_dicts",
    "load_characters",
    "load_needs",
    "load_scenes",
    "load_subsets",
    "located_entries",
    "read_once",
    "register_alphabets",
    "register_class_folders",
    "register_custom",
    "register_neon_trees",
    "register_published",
    "register_segmentation_folder",
    "register_subsets",
    "seed_everything",
    "supercategories",
    "training_dicts",
    "use_custom_data",
]

# Under the folder that Detectron2 registers its own names for.
_ROOT = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
register_neon_trees(_ROOT)
register_subsets(_ROOT)
register_published(_ROOT)
register_alphabets(_ROOT)
