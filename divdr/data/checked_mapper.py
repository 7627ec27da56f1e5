"""Mappers whose errors name the image, and that know images without anything on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, detection_utils

from ..errors import DataError
from ..image_keys import IMAGE_KEY
from .augmentations import extra_augmentations
from .mapper import _read_file


class CheckedMapper:
    """Turns whatever goes wrong in a mapper into a :class:`DataError` that names the file.

    Args:
        mapper: from dataset dict to model input.
    """

    def __init__(self, mapper: Callable[[dict], Any]) -> None:
        self.mapper = mapper

    def __call__(self, dataset_dict: dict) -> Any:
        """What the mapper makes of the dict; a new dict of it gets the image's key, too.

        Raises:
            DataError: the mapper failed; its own error is the cause.
        """
        key = dataset_dict.get(IMAGE_KEY)
        try:
            item = self.mapper(dataset_dict)
        except DataError:
            raise
        except Exception as error:
            raise DataError(_sentence(dataset_dict, error)) from error
        if key is not None and isinstance(item, dict):
            item.setdefault(IMAGE_KEY, key)
        return item


class DetectionMapper(DatasetMapper):
    """Detectron2's mapper, with ``INPUT.EXTRA_AUGMENTATIONS``.

    With masks and crops Detectron2's own fails for images without annotations.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Arguments from ``cfg.INPUT`` and ``cfg.MODEL``.

        Raises:
            ConfigError: an augmentation is unknown.
        """
        arguments = super().from_config(cfg, is_train)
        if is_train:
            extra = extra_augmentations(cfg.INPUT.EXTRA_AUGMENTATIONS)
            arguments["augmentations"] = [*arguments["augmentations"], *extra]
        return arguments

    def _transform_annotations(
        self, dataset_dict: dict, transforms: Any, image_shape: tuple[int, int]
    ) -> None:
        if self.recompute_boxes and all(a.get("iscrowd", 0) for a in dataset_dict["annotations"]):
            del dataset_dict["annotations"]
            dataset_dict["instances"] = detection_utils.annotations_to_instances([], image_shape)
            return
        super()._transform_annotations(dataset_dict, transforms, image_shape)


def _sentence(dataset_dict: dict, error: Exception) -> str:
    for key in ("file_name", "sem_seg_file_name"):
        if dataset_dict.get(key):
            try:
                _read_file(dataset_dict[key], None)
            except DataError as unreadable:
                return str(unreadable)
    text = " ".join(str(error).split())
    name = str(dataset_dict.get("file_name", dataset_dict.get("image_id", "without a name")))
    if name in text:
        return text
    return f"image {name} cannot be used ({type(error).__name__}: {text})"
