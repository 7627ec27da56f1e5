"""Mappers for detection and panoptic segmentation, whose errors name the image."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T

from ..errors import ConfigError, DataError
from ..image_files import check_label_map, read_image, read_labels, read_raw
from ..image_keys import IMAGE_KEY
from .classes import predicted_stuff

_MAKERS: dict[str, Callable[[], list[T.Augmentation]]] = {
    "vertical_flip": lambda: [T.RandomFlip(horizontal=False, vertical=True)],
    # Seen from above, nothing says where up is.
    "quarter_turns": lambda: [T.RandomRotation([0, 90, 180, 270], sample_style="choice")],
    "colour": lambda: [
        T.RandomBrightness(0.7, 1.3),
        T.RandomContrast(0.7, 1.3),
        T.RandomSaturation(0.5, 1.5),
    ],
}


def extra_augmentations(names: Sequence[str]) -> list[T.Augmentation]:
    """Those of ``INPUT.EXTRA_AUGMENTATIONS``, in the order named.

    Raises:
        ConfigError: a name is unknown.
    """
    unknown = [name for name in names if name not in _MAKERS]
    if unknown:
        raise ConfigError(
            f"INPUT.EXTRA_AUGMENTATIONS {unknown[0]!r} is unknown; known are {', '.join(_MAKERS)}"
        )
    return [augmentation for name in names for augmentation in _MAKERS[name]()]


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
    """Detectron2's mapper with divdr's readers of files, and ``INPUT.EXTRA_AUGMENTATIONS``.

    With masks and crops Detectron2's own fails for images without annotations.

    Args:
        classes: of semantic labels, which must be below it; None: not known.
        ignore: label of pixels without a class.
        more: arguments of Detectron2's mapper.
    """

    @configurable
    def __init__(self, *, classes: int | None = None, ignore: int = 255, **more: Any) -> None:
        super().__init__(**more)
        self.classes = classes
        self.ignore = ignore

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
        arguments["classes"] = predicted_stuff(cfg)[1] or None
        arguments["ignore"] = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        return arguments

    def __call__(self, dataset_dict: dict) -> dict:
        """The dict with "image" (C, H, W) added, and what the model learns from in training.

        Raises:
            DataError: a file cannot be read, is of another size than the data set says, or holds
                labels that are no classes; the message names it.
        """
        item = copy.deepcopy(dataset_dict)
        pixels = read_image(item["file_name"], self.image_format)
        detection_utils.check_image_size(item, pixels)
        label_file = item.pop("sem_seg_file_name", None)
        labels = None
        if label_file is not None and self.is_train:
            labels = read_labels(label_file)
            if self.classes is not None:
                size = pixels.shape[:2]
                check_label_map(
                    labels, label_file, classes=self.classes, ignore=self.ignore, size=size
                )
        both = T.AugInput(pixels, sem_seg=labels)
        transforms = self.augmentations(both)
        size = both.image.shape[:2]
        # PyTorch's tensors go from worker to trainer by shared memory; other arrays are pickled.
        item["image"] = torch.as_tensor(np.ascontiguousarray(both.image.transpose(2, 0, 1)))
        if both.sem_seg is not None:
            item["sem_seg"] = torch.as_tensor(both.sem_seg.astype(np.int64))
        if self.proposal_topk is not None:
            detection_utils.transform_proposals(
                item, size, transforms, proposal_topk=self.proposal_topk
            )
        if not self.is_train:
            item.pop("annotations", None)
        elif "annotations" in item:
            self._transform_annotations(item, transforms, size)
        return item

    def _transform_annotations(
        self, dataset_dict: dict, transforms: Any, image_shape: tuple[int, int]
    ) -> None:
        if self.recompute_boxes and all(a.get("iscrowd", 0) for a in dataset_dict["annotations"]):
            del dataset_dict["annotations"]
            dataset_dict["instances"] = detection_utils.annotations_to_instances([], image_shape)
            return
        super()._transform_annotations(dataset_dict, transforms, image_shape)


class PanopticTargetMapper:
    """The mapper of Panoptic-DeepLab, with divdr's readers of files.

    Args:
        augmentations: applied to image and segments together.
        image_format: as Detectron2 names it.
        targets: from segment ids (H, W) and the dict's "segments_info" to what the model learns.
    """

    def __init__(
        self, augmentations: T.AugmentationList, image_format: str, targets: Callable[..., dict]
    ) -> None:
        self.augmentations = augmentations
        self.image_format = image_format
        self.targets = targets

    def __call__(self, dataset_dict: dict) -> dict:
        """The dict with "image" (C, H, W) and the targets added.

        Raises:
            DataError: a file cannot be read, or is of another size than the data set says; the
                message names it.
        """
        item = copy.deepcopy(dataset_dict)
        pixels = read_image(item["file_name"], self.image_format)
        detection_utils.check_image_size(item, pixels)
        both = T.AugInput(pixels, sem_seg=read_image(item.pop("pan_seg_file_name"), "RGB"))
        self.augmentations(both)
        item["image"] = torch.as_tensor(np.ascontiguousarray(both.image.transpose(2, 0, 1)))
        # COCO's panoptic format writes the number of a segment to the base of 256, red first.
        numbers = both.sem_seg.astype(np.int64) @ np.array([1, 256, 256**2])
        item.update(self.targets(numbers, item["segments_info"]))
        return item


def _sentence(dataset_dict: dict, error: Exception) -> str:
    for key in ("file_name", "sem_seg_file_name"):
        if dataset_dict.get(key):
            try:
                read_raw(dataset_dict[key])
            except DataError as unreadable:
                return str(unreadable)
    text = " ".join(str(error).split())
    name = str(dataset_dict.get("file_name", dataset_dict.get("image_id", "without a name")))
    if name in text:
        return text
    return f"image {name} cannot be used ({type(error).__name__}: {text})"
