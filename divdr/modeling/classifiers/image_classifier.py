"""The meta-architecture of image classification: pixels in, losses or scores out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from ...errors import ConfigError, DataError
from ...moe import (
    ClassificationSystem,
    Cost,
    Hydra,
    LibraryEmbedder,
    PerExample,
    PixelEmbedder,
    class_means,
    is_named,
    named_classifier,
    named_input,
)
from ...routing import to_device
from ...settings import HydraSettings
from ..partition_source import PartitionSource, partition_as_set
from .builders import build_classifier


@META_ARCH_REGISTRY.register()
class ImageClassifier(nn.Module):
    """Any classification system behind Detectron2's lists of dicts.

    In training, dicts with "image" (C, H, W) and "label" give the system's losses. In evaluation
    each image gets a dict of "scores" (classes,), probabilities; "ran" (experts,) bool; "macs", the
    multiply-adds that ran for it; and, of a system that tells them, "loaded", the numbers of
    parameters that did. All but the scores are on the host. Of a system of several tasks, dicts
    have "task", the number of the image's, in both; one batch may mix them.

    Args:
        system: what classifies.
        pixel_mean: of each channel.
        pixel_std: of each channel.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self, *, system: nn.Module, pixel_mean: list[float], pixel_std: list[float]
    ) -> None:
        super().__init__()
        assert isinstance(system, ClassificationSystem)
        self.system = system
        #: Experts that no image of a batch chose get no gradient: DDP has to look for them.
        self.leaves_parameters_out = getattr(system, "leaves_parameters_out", True)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean)[:, None, None], False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std)[:, None, None], False)
        loads = getattr(system, "loads", None)
        self._loads: Cost | None = loads() if callable(loads) else None
        self._costs: dict[tuple[int, int], Cost] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments from ``cfg.MODEL``.

        Raises:
            ConfigError: a setting of ``MODEL.CLASSIFIER`` is unknown or out of range.
        """
        return {
            "system": build_classifier(cfg),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.pixel_mean.device

    def forward(self, inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses in training, one dict an image in evaluation.

        Raises:
            DataError: an image has no label in training, or images of a batch differ in size.
        """
        images, tasks = self.batch(inputs), self.tasks(inputs)
        if self.training:
            return dict(self.system.losses(images, self.labels(inputs), *tasks))
        # The oracle of a single-gated mixture chooses by the true class.
        known = [self.labels(inputs)] if getattr(self.system, "needs_labels", False) else tasks
        logits, ran = self.system(images, *known)
        scores = logits.float().softmax(1)
        ran = ran.cpu()
        outputs = [
            {"scores": row, "ran": which, "macs": cost}
            for row, which, cost in zip(
                scores, ran, self._cost(images).of(ran).tolist(), strict=True
            )
        ]
        if self._loads is not None:
            for output, numbers in zip(outputs, self._loads.of(ran).tolist(), strict=True):
                output["loaded"] = numbers
        return outputs

    def batch(self, inputs: list[dict]) -> Tensor:
        """(N, C, H, W) normalised images.

        Raises:
            DataError: they differ in size.
        """
        shapes = {tuple(item["image"].shape) for item in inputs}
        if len(shapes) != 1:
            raise DataError(
                f"images of a batch differ in size, {sorted(shapes)}; set INPUT.CLASSIFICATION.SIZE"
            )
        return self.normalise(torch.stack([item["image"] for item in inputs]))

    def normalise(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) pixels as the system sees them, on its device."""
        return (to_device(pixels, self.device).float() - self.pixel_mean) / self.pixel_std

    def labels(self, inputs: list[dict]) -> Tensor:
        """(N,) int64.

        Raises:
            DataError: an image has none.
        """
        if not all("label" in item for item in inputs):
            raise DataError("an image of the batch has no label")
        return to_device(torch.tensor([item["label"] for item in inputs]), self.device)

    def tasks(self, inputs: list[dict]) -> list[Tensor]:
        """(N,) int64, what a system of several tasks is given beside the images; else nothing.

        Raises:
            DataError: an image has none.
        """
        if getattr(self.system, "tasks", 1) == 1:
            return []
        if not all("task" in item for item in inputs):
            raise DataError(
                f"the model has {self.system.tasks} tasks; an image of the batch does not say by "
                '"task" which is its'
            )
        return [to_device(torch.tensor([item["task"] for item in inputs]), self.device)]

    def _cost(self, images: Tensor) -> Cost:
        size = (images.shape[-2], images.shape[-1])
        if size not in self._costs:
            self._costs[size] = self.system.cost(*size)
        return self._costs[size]


def hydra_of(model: nn.Module) -> Hydra | None:
    """The Hydra inside an ``ImageClassifier``; None for other systems and models."""
    if isinstance(model, ImageClassifier) and isinstance(model.system, Hydra):
        return model.system
    return None


def choose_partition(
    cfg: CfgNode,
    classes: Sequence[str],
    coarse: Sequence[int] | None,
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]],
) -> Tensor:
    """(C,) the branch of every class.

    Args:
        cfg: the whole configuration.
        classes: names of the training set's classes.
        coarse: the data set's own super-class of each class; None: it has none.
        batches: makes normalised images and labels of every training image once, for "cluster".

    Raises:
        ConfigError: a setting is unknown, out of range or does not suit the data set.
        DataError: the partition's file does not, or a class has no image.
    """
    settings = HydraSettings.of(cfg.MODEL.CLASSIFIER.HYDRA)

    def means() -> Tensor:
        embedder = _embedder(cfg).to(cfg.MODEL.DEVICE)
        return class_means(embedder.eval(), batches(), len(classes))

    source = PartitionSource(classes, lambda: coarse, means, seed=max(0, cfg.SEED))
    return partition_as_set(settings, source)


def _embedder(cfg: CfgNode) -> nn.Module:
    name = cfg.MODEL.CLASSIFIER.HYDRA.EMBEDDER
    if name == "pixels":
        return PixelEmbedder()
    if is_named(name):
        given = named_input(name)
        classifier = named_classifier(name, None, pretrained=True, image_size=given.size[0])
        means, deviations = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
        reverse = cfg.INPUT.FORMAT == "BGR"
        return LibraryEmbedder(classifier, given, means, deviations, reverse=reverse)
    raise ConfigError(
        f"MODEL.CLASSIFIER.HYDRA.EMBEDDER {name!r} is unknown; write pixels, torchvision:NAME or "
        "timm:NAME"
    )


def per_example_of(model: nn.Module) -> PerExample | None:
    """The routed network inside an ``ImageClassifier``; None for other systems and models."""
    if isinstance(model, ImageClassifier) and isinstance(model.system, PerExample):
        return model.system
    return None
