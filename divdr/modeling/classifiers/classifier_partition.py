"""Class partitions as ``cfg.MODEL.CLASSIFIER.HYDRA`` asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from detectron2.config import CfgNode
from torch import Tensor, nn

from ...errors import ConfigError
from ...moe import Embedder, Hydra, PixelEmbedder, class_means, is_named, named_classifier
from ..partition_source import PartitionSource, partition_as_set
from .builders import image_channels
from .image_classifier import ImageClassifier


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
    settings = cfg.MODEL.CLASSIFIER.HYDRA

    def means() -> Tensor:
        embedder = _embedder(cfg).to(cfg.MODEL.DEVICE)
        return class_means(embedder.eval(), batches(), len(classes))

    source = PartitionSource(classes, lambda: coarse, means, seed=max(0, cfg.SEED))
    return partition_as_set(settings, "MODEL.CLASSIFIER.HYDRA", source)


def _embedder(cfg: CfgNode) -> nn.Module:
    name = cfg.MODEL.CLASSIFIER.HYDRA.EMBEDDER
    if name == "pixels":
        return PixelEmbedder()
    if is_named(name):
        size = cfg.INPUT.CLASSIFICATION.SIZE
        return Embedder(
            named_classifier(
                name, None, in_channels=image_channels(cfg), pretrained=True, image_size=size
            )
        )
    raise ConfigError(
        f"MODEL.CLASSIFIER.HYDRA.EMBEDDER {name!r} is unknown; write pixels, torchvision:NAME or "
        "timm:NAME"
    )
