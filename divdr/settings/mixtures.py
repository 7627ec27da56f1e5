"""Settings of mixtures of experts: image classifiers, and box heads.

DynK-Hydra is "Dynamic top-K ensemble ..." (2023), with HydraRes in it; CoE is "Collaboration of
Experts: Achieving 80% Top-1 Accuracy on ImageNet with 100M FLOPs".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import ConfigError
from .field import Settings, setting
from .routed import PerExampleSettings
from .routing import WHEN
from .single_gated import SingleGateSettings


def check_alpha(key: str, alpha: tuple[float, ...]) -> None:
    """See that α has a start and an end.

    Raises:
        ConfigError: it does not, or they are not within 0 and 1; the sentence names ``key``.
    """
    if len(alpha) != 2 or not all(0 <= value <= 1 for value in alpha):
        raise ConfigError(f"{key}: α must be two numbers between 0 and 1, not {list(alpha)}")


_SINGLE_GATE = SingleGateSettings()
_PER_EXAMPLE = PerExampleSettings()
_PARTITIONS = ("cluster", "random", "coarse", "file")
_LAYERS_OF_EACH = "Layers of each {}: channels of 3 × 3 convolutions."


@dataclass(frozen=True)
class GatingSettings(Settings):
    """What Hydras have as classifiers and as box heads."""

    branches: int = setting(20, "nb, number of branches.", low=1, source="DynK-Hydra")
    top_k: int = setting(
        4,
        "K: branches that run at most for an image or a proposal.",
        low=1,
        source="DynK-Hydra",
    )
    threshold: float = setting(
        0.08,
        "τ of evaluation: a branch of the top K runs if the gater gives it this probability; 0 is "
        "the fixed K of HydraRes. Can be changed without training anew. 0.08 is the value for "
        "which the paper's Table 6 repeats its main results.",
        unit="probability",
        low=0,
        high=1,
        source="DynK-Hydra, Table 6",
    )
    train_threshold: float = setting(
        0.08,
        "τ of training: Eq. 6 stands in the loss too. With 0 here the combiner learns sums of K "
        "maps and meets fewer in evaluation.",
        unit="probability",
        low=0,
        high=1,
        source="DynK-Hydra, Eq. 6",
    )
    ensemble_weight: float = setting(
        1.0,
        "α1, weight of the ensemble's loss (of a box head: of the classes' loss).",
        low=0,
        source="DynK-Hydra, Eq. 7",
    )
    gater_weight: float = setting(
        1.5, "α2, weight of the gater's loss.", low=0, source="DynK-Hydra, Eq. 7"
    )
    branch_weight: float = setting(
        0.05,
        "α3, weight of the branches' own losses; 0 leaves out their extra heads (HydraRes).",
        low=0,
        source="DynK-Hydra, Eq. 7",
    )
    partition: str = setting(
        "cluster",
        'Classes of each branch: "cluster" (Algorithm 2), "random", "coarse" (the data set\'s own '
        'super-classes), or "file" (tools/partition_classes.py).',
        choices=_PARTITIONS,
        source="DynK-Hydra, Algorithm 2",
    )
    partition_file: str = setting("", 'The file that PARTITION "file" reads.')


@dataclass(frozen=True)
class HydraSettings(GatingSettings):
    """System "build_hydra_classifier": HydraRes and DynK-Hydra."""

    KEY: ClassVar[str] = "MODEL.CLASSIFIER.HYDRA"

    embedder: str = setting(
        "pixels",
        'What "cluster" embeds images by: "pixels", "torchvision:NAME" or "timm:NAME" with that '
        "library's weights, which sees the images in the size and with the normalisation that its "
        "weights were trained on. By a model of one's own: tools/partition_classes.py.",
        source="DynK-Hydra, Algorithm 2",
    )


@dataclass(frozen=True)
class TeachingSettings(Settings):
    """What experts and selector learn from a batch: LGM, WGM and SRM, whole or as Table 8 has them.

    "delegator": the experts' portions are its probabilities, balanced and smoothed; "labels": the
    selection labels (WGM*); "free": its probabilities without balance, smoothing and normalisation
    (WGM°); "none": all samples count the same for every expert.
    """

    KEY: ClassVar[str] = "MODEL.CLASSIFIER.COE"

    alpha: tuple[float, float] = setting(
        (0.2, 0.8),
        "α at the start and the end of the second stage; two numbers between 0 and 1.",
        source="CoE, Eq. 5",
    )
    wgm: str = setting(
        "delegator",
        'WGM: "delegator" (the paper\'s), "labels" (WGM\\*), "free" (WGM°) or "none" (without); '
        "WGM• is ALPHA [0.8, 0.8].",
        choices=("delegator", "labels", "free", "none"),
        source="CoE, Table 8",
    )
    lgm: str = setting(
        "balanced",
        'LGM: "balanced" (the paper\'s) or "free" (LGM\\*).',
        choices=("balanced", "free"),
        source="CoE, Table 8",
    )
    srm: bool = setting(
        True, "SRM: samples on which experts differ count more.", source="CoE, Table 8"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_alpha(f"{self.KEY}.ALPHA", self.alpha)

    def alpha_at(self, done: float) -> float:
        """α, linear over the experts' training, of which a share ``done`` is over."""
        first, last = self.alpha
        return first + (last - first) * min(1.0, max(0.0, done))


@dataclass(frozen=True)
class CollaborationSettings(TeachingSettings):
    """System "build_coe_classifier": Collaboration of Experts.

    Experts are whole networks by the keys of MODEL.CLASSIFIER; one value an expert here makes them
    differ.
    """

    KEY: ClassVar[str] = "MODEL.CLASSIFIER.COE"

    experts: int = setting(
        4,
        "n, number of experts. 1 is the paper's ablation without LGM: one expert behind a "
        "delegator that ends early.",
        low=1,
        source="CoE",
    )
    architectures: tuple[str, ...] = setting((), "ARCHITECTURE of each expert; empty: the same.")
    depths: tuple[int, ...] = setting((), "DEPTH of each expert; empty: the same.", low=1)
    channels: tuple[int, ...] = setting(
        (), "CHANNELS of each expert (densenet: GROWTH); empty: the same.", low=1
    )
    delegator_architecture: str = setting(
        "resnet",
        "ARCHITECTURE of the delegator's feature extractor: a network without its last layer.",
        source="CoE",
    )
    delegator_depth: int = setting(1, "DEPTH of that network.", low=1)
    delegator_channels: int = setting(8, "CHANNELS of that network (densenet: GROWTH).", low=1)
    delegator_stage: float = setting(
        0.3,
        "Length of the first stage, which trains extractor and task predictor alone. The paper "
        "does not say how long it is.",
        unit=WHEN,
        low=0,
    )
    delegator: str = setting(
        "",
        "Checkpoint of a trained collaboration whose delegator is taken over; the first stage is "
        "left out then, and SOLVER.RESTARTS must be empty.",
    )
    subtasks: int = setting(
        1,
        "The experts divide into so many subtasks, trained each for itself on the images that the "
        "subtask selector sends there (16 experts, 4 subtasks in the paper). That selector is the "
        "expert selector of COE.DELEGATOR, which must have as many experts.",
        low=1,
        source="CoE, appendix A.2",
    )
    selection: str = setting(
        "taught",
        'How an expert is chosen: "taught" (the paper\'s: selector with LGM and SRM); its '
        'comparisons: by the class that the delegator takes an image for, with classes "random" '
        '(RP) or by clusters of their mean features ("category", CBP), or "direct", a selector '
        "whose probabilities scale the experts' losses (DTS).",
        choices=("taught", "random", "category", "direct"),
        source="CoE, Table 3",
    )
    threshold: float = setting(
        0.95,
        "τ: the delegator's prediction is final where its probability is above it; 1 always asks "
        "an expert. Can be changed without training anew.",
        unit="probability",
        low=0,
        high=1,
        source="CoE",
    )
    selection_weight: float = setting(
        0.8, "η, weight of the expert selector's loss.", source="CoE, Eq. 8"
    )
    teacher: str = setting(
        "",
        'Knowledge distillation for task predictor and experts: "" is none, else '
        '"torchvision:NAME" or "timm:NAME", which sees the images as MODEL.PIXEL_MEAN and '
        "PIXEL_STD make them.",
        source="CoE",
    )
    teacher_weights: str = setting(
        "",
        "The teacher's weights: \"\" are its library's, else those of a build_single_classifier of "
        "that ARCHITECTURE.",
    )
    distillation_weight: float = setting(
        0.5, "Share of the teacher in the loss; the paper gives none.", low=0, high=1
    )
    temperature: float = setting(
        1.0, "Temperature of teacher and taught; the paper gives none.", above=0
    )
    condconv: int = setting(
        0,
        "CondConv in the experts: kernels that every convolution mixes (4 in the paper); 0 is off.",
        low=0,
        source="CoE",
    )
    pwlu: int = setting(
        0, "PWLU in the experts: intervals (16 in its paper); 0 is off.", low=0, source="CoE"
    )
    pwlu_statistics: float = setting(
        0.05,
        "For so long PWLU is ReLU and gathers the statistics that then place it.",
        unit="iterations of the second stage, or share of it if below 1",
        low=0,
    )


@dataclass(frozen=True)
class ClassifierSettings(Settings):
    """Image classification (MODEL.META_ARCHITECTURE "ImageClassifier")."""

    KEY: ClassVar[str] = "MODEL.CLASSIFIER"

    name: str = setting(
        "build_single_classifier",
        'The system: "build_single_classifier", "build_ensemble_classifier", '
        '"build_hydra_classifier" (HydraRes and DynK-Hydra), "build_coe_classifier" '
        '(Collaboration of Experts), "build_single_gate_classifier" or '
        '"build_per_example_classifier" (per-example routing); more by '
        "divdr.modeling.CLASSIFIER_REGISTRY.",
    )
    num_classes: int = setting(10, "Classes of the data set.", low=1)
    architecture: str = setting(
        "resnet",
        '"resnet" or "densenet" (the paper\'s, in parts), or a whole classifier of a library, '
        '"torchvision:NAME" or "timm:NAME" (single network, ensemble and experts).',
        source="DynK-Hydra",
    )
    stem: str = setting(
        "",
        '"" is the architecture\'s own stem; else "torchvision:NAME.NODE" or "timm:NAME.LEVEL".',
    )
    pretrained: bool = setting(
        False,
        "Take the library's weights for what is named after one. For grey images the first "
        "convolution is summed over the colours; for C channels, 3 excepted, it is repeated, times "
        "3 / C.",
    )
    depth: int = setting(
        1,
        "d: blocks a stage (resnet), or multiple of the layers of a block (densenet).",
        low=1,
        source="DynK-Hydra",
    )
    channels: int = setting(
        16,
        "Channels of resnet's first stage; the others have two and four times as many.",
        low=1,
        source="DynK-Hydra",
    )
    growth: int = setting(3, "densenet: channels that a layer adds.", low=1, source="DynK-Hydra")
    dense_layers: tuple[int, ...] = setting(
        (3, 6, 12),
        "densenet: layers of the three blocks at DEPTH 1.",
        low=1,
        not_empty=True,
        source="DynK-Hydra",
    )
    stem_width: float = setting(
        1.0, "ws: multiple of the channels in the stem.", above=0, source="DynK-Hydra"
    )
    branch_width: float = setting(
        1.0, "wb: multiple of the channels in branches.", above=0, source="DynK-Hydra"
    )
    gater_width: float = setting(
        1.0, "wg: multiple of the channels in the gater.", above=0, source="DynK-Hydra"
    )
    separable: bool = setting(
        False,
        "Depthwise-separable convolutions (CUB-200 in the paper).",
        source="DynK-Hydra",
    )
    entry: str = setting(
        "small",
        'resnet: "small" for images of about 32 × 32 pixels, "large" for 224 × 224.',
        choices=("small", "large"),
        source="DynK-Hydra",
    )
    members: int = setting(4, "Ensemble: number of networks, all of which run.", low=1)
    hydra: HydraSettings = HydraSettings()
    coe: CollaborationSettings = CollaborationSettings()
    single_gate: SingleGateSettings = _SINGLE_GATE
    per_example: PerExampleSettings = _PER_EXAMPLE


@dataclass(frozen=True)
class BoxHydraSettings(GatingSettings):
    """MODEL.ROI_BOX_HEAD.NAME "HydraBoxHead": DynK-Hydra, on a proposal's pooled features.

    With BoxCollaborationSettings: they take the place of MODEL.ROI_BOX_HEAD's NUM_CONV, CONV_DIM,
    NUM_FC and FC_DIM; NORM is that of all their convolutions.
    """

    KEY: ClassVar[str] = "MODEL.ROI_BOX_HEAD.HYDRA"

    branches: int = setting(
        12, "nb, number of branches; COCO has 12 super-categories.", low=1, source="DynK-Hydra"
    )
    partition: str = setting(
        "cluster",
        'Classes of each branch: "cluster" (Algorithm 2 on the mean features of the classes\' '
        'boxes, by the box head as training starts), "random", "coarse" (the data set\'s '
        'super-categories, as many as branches), or "file" (tools/partition_classes.py).',
        choices=_PARTITIONS,
        source="DynK-Hydra, Algorithm 2",
    )
    stem_conv_dims: tuple[int, ...] = setting((64,), "Channels of the stem's convolutions.", low=1)
    stem_kernel: int = setting(1, "Kernel of the stem's convolutions.", unit="pixels of the map")
    branch_conv_dims: tuple[int, ...] = setting((), _LAYERS_OF_EACH.format("branch"), low=1)
    branch_fc_dims: tuple[int, ...] = setting(
        (512, 512), "Sizes of each branch's linear layers, after its convolutions.", low=1
    )
    gater_dim: int = setting(
        64, "Width of the gater's layer, which sees the mean of the stem's map.", low=1
    )


@dataclass(frozen=True)
class BoxCollaborationSettings(TeachingSettings):
    """MODEL.ROI_BOX_HEAD.NAME "CoEBoxHead": Collaboration of Experts, likewise."""

    KEY: ClassVar[str] = "MODEL.ROI_BOX_HEAD.COE"

    experts: int = setting(4, "n, number of experts.", low=1, source="CoE")
    threshold: float = setting(
        0.9,
        "τ: a proposal ends at the delegator if its largest class probability, background's "
        "included, is above. Can be changed without training anew; 1 sends all proposals on, 0 "
        "none.",
        unit="probability",
        low=0,
        high=1,
        source="CoE",
    )
    start: float = setting(
        0.3,
        "When the second stage begins, in which selector and experts train.",
        unit=WHEN,
        low=0,
    )
    selector_weight: float = setting(
        0.8, "η, weight of the expert selector's loss.", source="CoE, Eq. 8"
    )
    freeze_delegator: bool = setting(
        False,
        "Let the delegator learn no more in that stage, BatchNorm included, as the paper has it. "
        "There nothing under the delegator moves; here the maps under it do.",
        source="CoE",
    )
    delegator_conv_dims: tuple[int, ...] = setting(
        (64,), "Channels of the delegator's convolutions.", low=1
    )
    delegator_kernel: int = setting(1, "Kernel of those convolutions.", unit="pixels of the map")
    delegator_fc_dims: tuple[int, ...] = setting(
        (256,), "Sizes of the delegator's linear layers.", low=1
    )
    expert_conv_dims: tuple[int, ...] = setting((), _LAYERS_OF_EACH.format("expert"), low=1)
    expert_fc_dims: tuple[int, ...] = setting(
        (1024, 1024), "Sizes of each expert's linear layers, after its convolutions.", low=1
    )
