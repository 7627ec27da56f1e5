"""Models by name of a configuration, and a trained one ready for single images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from PIL import Image
from torch import nn

from ..data import ClassificationMapper
from ..errors import ConfigError
from ..evaluation import augmented
from ..image_files import picture_pixels, read_image
from ..modeling import DialSetting, attached_routing
from ..packaged_configs import config_beside, find_weights
from .about import drawing_metadata, model_tasks
from .execution_modes import load_with_about
from .setup import load_config, on_available_device
from .trainer import Trainer

if TYPE_CHECKING:
    from typing_extensions import Self

Overrides = Mapping[str, Any] | Sequence[Any]
"""Settings: values by key, or keys and values in turn."""


def create_model(
    config: str | Path, weights: str | Path | None = None, *, overrides: Overrides = ()
) -> nn.Module:
    """A Detectron2 model in evaluation mode, with routing attached where its backbone routes.

    Args:
        config: a name of ``divdr.list_models()``, or a file.
        weights: checkpoint, the folder of a run, or the name of a model that divdr brings along;
            None: weights at random, whatever
            ``MODEL.WEIGHTS`` says.
        overrides: settings on top of the configuration's. Without a GPU the model is on the CPU,
            whatever ``MODEL.DEVICE`` says.

    Returns:
        The model; it takes Detectron2's list of dicts.

    Raises:
        ConfigError: no such configuration, or a setting cannot be.
        CheckpointError: the weights are another model's, or damaged.
    """
    cfg = load_config(str(config), pairs(overrides))
    if weights is None:
        return Trainer.build_model(cfg).eval()
    cfg.MODEL.WEIGHTS = str(find_weights(weights))
    return load_with_about(cfg)[0]


def pairs(overrides: Overrides) -> list[Any]:
    """Keys and values in turn, whichever way overrides are given."""
    if isinstance(overrides, Mapping):
        return [word for pair in overrides.items() for word in pair]
    return list(overrides)


class Predictor:
    """Runs the model of a config on one image at a time, as its evaluation does, at several scales
    and in windows if ``TEST.AUG`` and ``TEST.SLIDING_WINDOW`` say so.

    Names and colours of classes are the checkpoint's, so that no data set need be registered.

    Args:
        cfg: configuration; ``MODEL.WEIGHTS`` names the checkpoint. Without a GPU the model runs on
            the CPU, whatever ``MODEL.DEVICE`` says.
        task: number of the task that is predicted, of a model of several.

    Attributes:
        model: the model, in evaluation mode.
        metadata: names and colours of classes, for pictures.
        classifies: whether the model tells an image's class, instead of finding things in it.

    Raises:
        ConfigError: the model has several tasks and none of them is named, or no such task.
        CheckpointError: no weights, weights of another model, or of one for images that come in
            otherwise than the config says.
    """

    def __init__(self, cfg: CfgNode, task: int | None = None) -> None:
        self.cfg = cfg = on_available_device(cfg)
        self._item = _task_item(cfg, task)
        self.model, about = load_with_about(cfg)
        self.routing = attached_routing(self.model)
        self.metadata = drawing_metadata(cfg, about, task)
        self.classifies = cfg.INPUT.DATASET_MAPPER_NAME == "classification"
        self._mapper = ClassificationMapper(cfg, is_train=False) if self.classifies else None
        seen, self._runs = augmented(cfg, self.model)
        self._resize = T.ResizeShortestEdge([seen.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)

    @classmethod
    def from_files(
        cls,
        weights: str | Path,
        config: str | Path | None = None,
        *,
        overrides: Overrides = (),
        task: int | None = None,
    ) -> Self:
        """The predictor of a checkpoint.

        Args:
            weights: the file, the folder of a run, or the name of a model that divdr brings along
                (``divdr.packaged_configs.packaged_weights``).
            config: a file, or a name of ``divdr.list_models()``; None: the ``config.yaml`` that
                training wrote beside the weights.
            overrides: settings on top of the configuration's.
            task: see the class.

        Raises:
            ConfigError: no configuration is there, or a setting cannot be; see also the class.
            CheckpointError: see the class.
        """
        weights = find_weights(weights)
        file = config_beside(weights) if config is None else config
        cfg = load_config(str(file), [*pairs(overrides), "MODEL.WEIGHTS", str(weights)])
        return cls(cfg, task)

    @torch.no_grad()
    def __call__(
        self, image: np.ndarray | str | Path, size: tuple[int, int] | None = None
    ) -> dict[str, Any]:
        """The model's output for an image; for a routed model with its ``routing`` record.

        Args:
            image: (H, W, 3) uint8, RGB; (H, W) or (H, W, 1), grey; or a file.
            size: (rows, columns) of what the model finds, maps and boxes; None: the image's. What
                the network sees does not depend on it.

        Raises:
            DataError: the file cannot be read as an image.
        """
        if isinstance(image, (str, Path)):
            image = read_image(image, "RGB")
        picture = Image.fromarray(image[:, :, 0] if image.shape[2:] == (1,) else image)
        if self._mapper is not None:
            item = self._mapper({"pixels": np.asarray(picture)})
            return self.model([{**item, **self._item}])[0]
        pixels = self._resized(picture_pixels(picture, self.cfg.INPUT.FORMAT))
        # Whole levels stay such: scales are made of them by Pillow, as of the mapper's.
        dtype = np.uint8 if pixels.dtype == np.uint8 else np.float32
        tensor = torch.from_numpy(np.array(pixels.transpose(2, 0, 1), dtype, order="C"))
        height, width = size or image.shape[:2]
        item = {"image": tensor, "height": height, "width": width, **self._item}
        return self._runs([item])[0]

    def expert(self, output: dict[str, Any]) -> int | None:
        """Which local expert an output's route belongs to; None without experts."""
        if self.routing is None or self.routing.experts is None or not self.routing.experts.ready:
            return None
        values = self.routing.clustered_values(output["routing"])
        return int(self.routing.experts.assign(values)[0])

    def turn_dial(self, position: float) -> DialSetting:
        """Set the cost of what is predicted from now on, see ``RoutingSupervision.turn_dial``.

        Raises:
            ConfigError: the model is not routed, or its checkpoint was not calibrated for several
                costs.
        """
        if self.routing is None:
            raise ConfigError("the model has no routed backbone, and one cost")
        return self.routing.turn_dial(position)

    def _resized(self, pixels: np.ndarray) -> np.ndarray:
        transform = self._resize.get_transform(pixels)
        if isinstance(transform, T.ResizeTransform) and min(transform.new_h, transform.new_w) < 1:
            # The shorter side of a very thin image is rounded to nothing.
            rows, columns = max(1, transform.new_h), max(1, transform.new_w)
            transform = T.ResizeTransform(*pixels.shape[:2], rows, columns)
        return transform.apply_image(pixels)


def _task_item(cfg: CfgNode, task: int | None) -> dict[str, int]:
    """What an image's dict has to say of its task."""
    tasks = model_tasks(cfg)
    if not tasks and task is None:
        return {}
    if not tasks:
        raise ConfigError(f"the model has one task, and no task {task} to choose")
    if task is None or not 0 <= task < len(tasks):
        listed = ", ".join(f"{number} ({each.name})" for number, each in enumerate(tasks))
        asked = "say which to predict by its number" if task is None else f"task {task} is none"
        raise ConfigError(f"the model has {len(tasks)} tasks, {listed}: {asked}")
    return {"task": task}
