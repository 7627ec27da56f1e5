"""Settings of what routes each image through experts ("Diversity and Depth ...", ICLR 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import ConfigError
from .field import Settings, setting
from .routing import BalanceSettings

_PAPER = "Ramachandran & Le"


@dataclass(frozen=True)
class PerExampleSettings(BalanceSettings):
    """System "build_per_example_classifier": per-example routing (Ramachandran & Le).

    Layers of experts of different architecture, of which a gate chooses k for each image.
    """

    KEY: ClassVar[str] = "MODEL.CLASSIFIER.PER_EXAMPLE"

    model: str = setting(
        "layers",
        'Network: "layers" of experts on maps (Section 4.2), "linear" ones on all pixels at once '
        '(4.1; INPUT.CLASSIFICATION.SIZE must be set), or "cells" of choice blocks (4.3).',
        choices=("layers", "linear", "cells"),
        source=f"{_PAPER}, Sections 4.1 to 4.3",
    )
    layers: int = setting(
        8, "Routing layers; of cells their number, each with eight decisions.", low=1, source=_PAPER
    )
    filters: int = setting(
        48,
        "Channels of all layers (linear: neurons). Of cells those of the first third; the others "
        "have two and four times as many.",
        low=1,
        source=_PAPER,
    )
    shared_layers: int = setting(
        1, "Layers before them, which every image passes.", low=0, source=_PAPER
    )
    experts: tuple[str, ...] = setting(
        (
            *("conv_3x3", "conv_5x5", "conv_7x7", "conv_1x7_7x1"),
            *("max_pool_3x3", "avg_pool_3x3", "skip_connect"),
        ),
        "Operation of each expert of a layer: those, squeeze_excite, and the operations of "
        'MODEL.ROUTING.OPS; "linear" for MODEL "linear" alone. One, with K_FIRST and K_LAST 1, is '
        "an ordinary network.",
        not_empty=True,
        source=f"{_PAPER}, Section 4.2",
    )
    convolutions: int = setting(
        2,
        "Convolutions one after the other in conv_3x3, conv_5x5 and conv_7x7. The paper prints "
        "pairs, with which the network has 3.3 million numbers; the 1.8 million that it tells come "
        "with 1.",
        low=1,
        source=f"{_PAPER}, Section 4.2",
    )
    k_first: int = setting(
        7, "k of the first layer: experts that run for an image.", low=1, source=_PAPER
    )
    k_last: int = setting(
        2,
        "k of the last layer; between them it changes in equal steps (k-annealing).",
        low=1,
        source=_PAPER,
    )
    router: str = setting(
        "pooled_task",
        'What a gate looks at: the map\'s mean over its pixels ("pooled"), with the embedding of '
        'the image\'s task ("pooled_task"; with one task the same as "pooled"), that embedding '
        'alone ("task", as PathNet), or nothing ("constant": one path for all, architecture '
        "search).",
        choices=("pooled", "pooled_task", "task", "constant"),
        source=f"{_PAPER}, Section 2.2",
    )
    tasks: tuple[int, ...] = setting(
        (),
        "Classes of each task, in the order in which the tasks stand in DATASETS.TRAIN: a readout "
        "and an embedding for each, and MODEL.CLASSIFIER.NUM_CLASSES is not used. Empty: one task.",
        low=1,
        source=f"{_PAPER}, Section 4.2",
    )
    task_width: int = setting(
        32, "Numbers in a task's embedding; the paper does not tell how many.", low=1
    )
    pool_after: tuple[int, ...] = setting(
        (),
        "Layers after which 2 × 2 maximum pooling halves the map; 0 is the shared ones, 1 the "
        "first routing layer. The paper does not tell where its network pools. Not of cells, which "
        "do it where their channels double.",
        low=0,
    )
    norm_groups: int = setting(
        4, "Groups of GroupNorm; they must divide FILTERS. The paper does not tell.", low=1
    )
    balance_steps: int = setting(
        1,
        "Steps whose images these losses sum over, the present one and earlier ones; 1 is the "
        "paper's, for batches of hundreds.",
        low=1,
    )


@dataclass(frozen=True)
class RoutedResNetSettings(BalanceSettings):
    """Backbones "build_routed_resnet_..._backbone": ResNets whose 3 × 3 convolutions are chosen.

    Every 3×3 convolution of stride 1 of a bottleneck is a layer of experts, of which a gate
    chooses k for each image. Depth, channels, strides and dilations are those of MODEL.RESNETS.
    """

    KEY: ClassVar[str] = "MODEL.ROUTED_RESNET"

    experts: tuple[str, ...] = setting(
        ("conv_3x3", "conv_5x5", "conv_1x7_7x1", "max_pool_3x3", "squeeze_excite"),
        "Operation of each expert of a layer. Those of one name start equal, and the gate's noise "
        "sets them apart; the paper's homogeneous network is five times conv_3x3.",
        not_empty=True,
        source=f"{_PAPER}, Section 4.2.2",
    )
    k_first: int = setting(
        5, "k of the first layer: experts that run for an image.", low=1, source=_PAPER
    )
    k_last: int = setting(
        2,
        "k of the last layer; between them it changes in equal steps (k-annealing). The paper does "
        "not tell its ResNet's.",
        low=1,
        source=f"{_PAPER}, Section 2.1",
    )
    router: str = setting(
        "pooled",
        'What a gate looks at: the map\'s mean over its pixels ("pooled"), with the embedding of '
        'the image\'s task ("pooled_task"), that embedding alone ("task"), or nothing '
        '("constant": one path for all). Tasks are those of MODEL.MULTI_TASK.',
        choices=("pooled", "pooled_task", "task", "constant"),
        source=f"{_PAPER}, Section 2.2",
    )
    task_width: int = setting(32, "Numbers in a task's embedding.", low=1)
    norm: str = setting(
        "GN",
        'Normalisation of the whole backbone, in place of MODEL.RESNETS.NORM: "GN", for which '
        'R-50-GN.pkl of Detectron2\'s model zoo has weights, or "FrozenBN", which keeps that of '
        "pretrained weights. Others look at the whole batch, of which each expert sees a part.",
        choices=("GN", "FrozenBN"),
        source=f"{_PAPER}, Section 4.2",
    )


@dataclass(frozen=True)
class NarrowBackboneSettings(Settings):
    """Backbone "build_narrow_fpn_backbone": a static network of any width under Detectron2's FPN.

    A control for routed detectors; `make_control.py narrow` finds the width of a given cost.
    """

    KEY: ClassVar[str] = "MODEL.NARROW_BACKBONE"

    network: str = setting(
        "resnet18",
        "Which network; MobileNetV3 without its last 1×1 convolution.",
        choices=("resnet18", "mobilenet_v3_small", "mobilenet_v3_large"),
        source="He et al. 2016; Howard et al. 2019",
    )
    width: float = setting(
        1.0,
        "Multiple of the published channels; MobileNetV3's are rounded to multiples of 8.",
        above=0,
    )
    norm: str = setting(
        "BN",
        "Normalisation of the network, one of Detectron2's names; that of the neck is "
        "MODEL.FPN.NORM.",
    )


@dataclass(frozen=True)
class MultiTaskSettings(Settings):
    """Several tasks over one backbone (MODEL.META_ARCHITECTURE "MultiTask").

    Task i is that of the i-th data set of DATASETS.TRAIN, or of all whose metadata name the same
    "task"; each has heads of its own, by the keys of its architecture.
    """

    KEY: ClassVar[str] = "MODEL.MULTI_TASK"

    architectures: tuple[str, ...] = setting(
        ("SemanticSegmentor", "GeneralizedRCNN"),
        'Whose heads each task has: those of "SemanticSegmentor" or "GeneralizedRCNN".',
        not_empty=True,
    )
    classes: tuple[int, ...] = setting(
        (),
        "Classes of each task, in place of MODEL.SEM_SEG_HEAD.NUM_CLASSES and MODEL.ROI_HEADS."
        "NUM_CLASSES, where two tasks of one architecture have other numbers; empty: those.",
        low=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        known = ("SemanticSegmentor", "GeneralizedRCNN")
        for name in self.architectures:
            if name not in known:
                raise ConfigError(
                    f"{self.KEY}.ARCHITECTURES: a task's heads are those of {' or '.join(known)}, "
                    f"not {name!r}"
                )
