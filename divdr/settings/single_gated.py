"""Settings of single-gated mixtures: classifiers, box heads and segmentation heads.

SG is Royer et al., "Revisiting single-gated Mixtures of Experts" (2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .field import Settings, setting
from .routing import WHEN


@dataclass(frozen=True)
class MixtureSettings(Settings):
    """What single-gated mixtures of every kind have."""

    experts: int = setting(
        5,
        "K, number of experts. 0 is the base alone, 1 its ensemble with one expert on all data.",
        low=0,
        source="SG, Table 2",
    )
    similarity: str = setting(
        "euclidean",
        'What makes the initial gate of distances to the centres: "euclidean", softmax of −‖z − '
        'c‖² / T with T the mean squared distance to the nearest centre, or "cosine", the same of '
        "embeddings of length 1. The paper leaves it open.",
        choices=("euclidean", "cosine"),
        source="SG, Eq. 1",
    )
    floor: float = setting(
        0.05,
        "γ: a sample weighs clip(g₀, γ, 1) in an expert's training. The paper gives no value.",
        low=0,
        high=1,
        source="SG, Section 3.2",
    )
    ensembler: str = setting(
        "bagging",
        "How an expert's answer is joined to the base's: \"bagging\" (mean of probabilities), "
        '"stacking" (a linear layer on both, trained after its expert), "none" (the expert alone) '
        'or "top2" (two experts by the gate, without the base).',
        choices=("bagging", "stacking", "none", "top2"),
        source="SG, Table 6",
    )
    exit: str = setting(
        "none",
        'Which images the base answers alone: "none", "confidence" (its largest probability is '
        'above τ) or "anytime" (g · (1 − that probability) is below τ for every expert; several '
        "experts may run).",
        choices=("none", "confidence", "anytime"),
        source="SG, Eq. 2 and 3",
    )
    threshold: float = setting(
        0.75,
        "τ of EXIT. Can be changed without training anew.",
        unit="probability",
        low=0,
        high=1,
        source="SG, Table 3",
    )
    gate_stage: float = setting(
        0.1, "Length of the gate's training. The paper does not say.", unit=WHEN, low=0
    )


@dataclass(frozen=True)
class SingleGateSettings(MixtureSettings):
    """System "build_single_gate_classifier": a single-gated mixture.

    The base is the network that the keys of MODEL.CLASSIFIER describe; experts are what follows
    SPLIT_AT in it.
    """

    KEY: ClassVar[str] = "MODEL.CLASSIFIER.SINGLE_GATE"

    split_at: str = setting(
        "",
        'Module after which experts begin, as "layer2" of a ResNet or "features.7" of '
        "MobileNetV3-small (the paper's); \"\" is the stem of divdr's own networks, and layer2 of "
        "a ResNet.",
        source="SG, Table 1",
    )
    expert_architecture: str = setting(
        "", 'ARCHITECTURE of the network that experts are cut from; "" is the base\'s.'
    )
    expert_depth: int = setting(
        0, "DEPTH of that network; 0 is the base's.", low=0, source="SG, Table 1"
    )
    base: str = setting(
        "",
        "Checkpoint of a trained build_single_classifier of the same keys; BASE_STAGE is left out "
        "then.",
    )
    base_stage: float = setting(0.4, "Length of the base's training.", unit=WHEN, low=0)
    stacking_stage: float = setting(
        0.1,
        "Length of the stackers' training, after the experts'; of ENSEMBLER \"stacking\" alone.",
        unit=WHEN,
        low=0,
    )
    weighting: str = setting(
        "loss",
        'Whether the experts\' weights multiply losses ("loss") or are the chance to see a sample '
        '("sampling").',
        choices=("loss", "sampling"),
        source="SG, Section 3.2",
    )
    objective: str = setting(
        "log",
        'What an expert minimises: "log", cross-entropy, or "likelihood", the negative probability '
        "of the true class, as the objective is printed.",
        choices=("log", "likelihood"),
        source="SG, Algorithm 1",
    )
    partition: str = setting(
        "sample",
        'What is clustered: the training samples ("sample") or the mean embeddings of the classes '
        '("class").',
        choices=("sample", "class"),
        source="SG, Table 5",
    )
    oracle: bool = setting(
        False,
        'Let the true class choose the expert, in evaluation too; with PARTITION "class". A bound, '
        "no classifier.",
        source="SG, Table 5",
    )
    cluster_images: int = setting(
        0, "Training images that are clustered, drawn by chance; 0 is all.", low=0
    )
    compare: bool = setting(
        False,
        'Let evaluation also report, under "mixture", what the base alone, every ensembler, the '
        "oracle and early exits at several τ would reach; all experts run then.",
    )
    em_rounds: int = setting(
        0,
        "N_E: so often gate and experts train again, by the posterior g · e(y|x) of the round "
        "before.",
        low=0,
        source="SG, Section 3.2",
    )
    expert: int = setting(
        -1,
        "Which expert this run trains, from MODEL.WEIGHTS of a run with -2, which trains base and "
        "gate alone; -1 trains everything in one run. tools/assemble_experts.py puts experts "
        "together.",
        low=-2,
        source="SG, Section 3.2",
    )


@dataclass(frozen=True)
class HeadMixtureSettings(MixtureSettings):
    """What single-gated heads of detectors and segmentation models have.

    They are made from a finished model: tools/make_mixture.py.
    """

    experts: int = setting(5, "K, number of experts.", low=1, source="SG, Table 2")
    ensembler: str = setting(
        "bagging",
        "How an expert's answer is joined to the base's: \"bagging\" (mean of probabilities, of "
        'boxes that of deltas) or "none" (the expert alone).',
        choices=("bagging", "none"),
        source="SG, Table 6",
    )
    exit: str = setting(
        "confidence",
        'Which rows the base answers alone: "none", "confidence" or "anytime", see '
        "MODEL.CLASSIFIER.SINGLE_GATE.EXIT.",
        choices=("none", "confidence", "anytime"),
        source="SG, Eq. 2 and 3",
    )
    threshold: float = setting(
        0.9,
        "τ of EXIT. Can be changed without training anew.",
        unit="probability",
        low=0,
        high=1,
        source="SG, Table 3",
    )
    cluster_rows: int = setting(
        50_000, "Rows that are clustered at most, drawn by chance (of each process).", low=1
    )
    cluster_batches: int = setting(
        200, "Training batches that they are drawn from (of each process).", low=1
    )


@dataclass(frozen=True)
class BoxSingleGateSettings(HeadMixtureSettings):
    """MODEL.ROI_BOX_HEAD.NAME "SingleGateBoxHead"; a row is a proposal."""

    KEY: ClassVar[str] = "MODEL.ROI_BOX_HEAD.SINGLE_GATE"

    base_head: str = setting(
        "FastRCNNConvFCHead", "NAME of the finished box head, which the keys around describe."
    )
    shared_layers: int = setting(
        1, "Layers of it that experts share; they are copies of the others.", low=1
    )


@dataclass(frozen=True)
class SegmentationSingleGateSettings(HeadMixtureSettings):
    """MODEL.SEM_SEG_HEAD.NAME "SingleGateSegmentor"; a row is an image, or a window of it."""

    KEY: ClassVar[str] = "MODEL.SEM_SEG_HEAD.SINGLE_GATE"

    base_head: str = setting(
        "DynamicRoutingDecoder", "NAME of the finished head, which the keys around describe."
    )
    window: int = setting(
        0,
        "Rows and columns of a window in cells of the coarsest map; 0: a row is a whole image.",
        low=0,
    )
    backbone_from: str = setting(
        "",
        'Part of the backbone at which experts begin, as "res5" of a ResNet or "bottom_up.res5" '
        'under an FPN: they are copies of it, of what runs after it, and of the head; "" is the '
        "head alone. For rows that are whole images.",
    )
    halo: int = setting(
        1, "Cells around a window that an expert sees too, of the coarsest map.", low=0
    )
