"""Settings of segmentation's loss, and of its evaluation in windows, beside Detectron2's keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import ConfigError
from .field import Settings, setting


@dataclass(frozen=True)
class SegmentationLossSettings(Settings):
    """What `DynamicRoutingDecoder` learns from. The defaults are the mean cross-entropy."""

    KEY: ClassVar[str] = "MODEL.SEM_SEG_HEAD.LOSS"

    class_weights: tuple[float, ...] = setting(
        (),
        "Weight of each class in the cross-entropy, one number a class; empty: all alike.",
        low=0,
    )
    balance: str = setting(
        "",
        "Class weights from how many pixels of DATASETS.TRAIN each class has, counted at the start "
        'of training: "median" (median frequency / frequency, among the images that show the '
        'class) or "log" (1 / ln(1.02 + frequency)). "" takes CLASS_WEIGHTS.',
        choices=("", "median", "log"),
        source='"median": Eigen and Fergus (ICCV 2015); "log": ENet',
    )
    hard_pixels: float = setting(
        1.0,
        "Share of a batch's pixels, those of the largest loss, that is learned from "
        "(Detectron2's DeepLabCE); 1 is all.",
        above=0,
        high=1,
        source="DeeperLab, Section 3.3",
    )
    label_smoothing: float = setting(
        0.0,
        "Share of a pixel's label that is spread evenly over all classes.",
        low=0,
        below=1,
        source="Szegedy et al. (CVPR 2016), Section 7",
    )
    dice: float = setting(
        0.0,
        "Weight of the soft Dice loss of the classes in the batch, beside the cross-entropy; 0 is "
        "without.",
        low=0,
        source="Milletari et al. (3DV 2016)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.balance and self.class_weights:
            raise ConfigError(
                f'{self.KEY}.CLASS_WEIGHTS are given, and BALANCE "{self.balance}" counts others: '
                "set one of the two"
            )
        if self.class_weights and not any(self.class_weights):
            raise ConfigError(f"{self.KEY}.CLASS_WEIGHTS are all 0: nothing would be learned")


@dataclass(frozen=True)
class SlidingWindowSettings(Settings):
    """Evaluation of semantic segmentation in windows, for images larger than memory or crops."""

    KEY: ClassVar[str] = "TEST.SLIDING_WINDOW"

    size: tuple[int, ...] = setting(
        (),
        "(height, width) of a window; empty: the image is seen whole, as is one that is no larger.",
        unit="pixels",
        low=32,
    )
    overlap: float = setting(
        0.25,
        "Share of a window that the next one sees too; where windows overlap, probabilities are "
        "averaged.",
        low=0,
        below=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.size) not in (0, 2):
            raise ConfigError(
                f"{self.KEY}.SIZE must be empty or (height, width), not {list(self.size)}"
            )
