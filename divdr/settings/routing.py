"""Settings of the routed backbone, its budget and its gate clustering (``MODEL.ROUTING``).

DR is Li et al., "Learning Dynamic Routing for Semantic Segmentation" (CVPR 2020); DivDR is
"Diversified Dynamic Routing for Vision Tasks".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import ConfigError
from .field import Settings, setting

WHEN = "iteration, or share of training if below 1"


@dataclass(frozen=True)
class BudgetSettings(Settings):
    """Budget loss: WEIGHT · (expected cost / cost with all gates open − TARGET)².

    DR-A is 0.8 and 0.1, DR-B 0.5 and 0.1, DR-C 0.5 and 0.2. The keys TARGET_… drive the mean *real*
    cost of training images to a number in place of that loss: one of TARGET_SHARE and
    TARGET_GFLOPS, with WEIGHT 0.
    """

    KEY: ClassVar[str] = "MODEL.ROUTING.BUDGET"

    weight: float = setting(
        0.0, 'λ1, weight of the budget loss; 0 is off ("Raw").', low=0, source="DR, Eq. 9"
    )
    target: float = setting(
        0.1,
        "μ, the expected cost that the loss pulls towards.",
        unit="share of the all-open cost",
        low=0,
        source="DR, Eq. 9",
    )
    per: str = setting(
        "image",
        'What is squared: the distance of each "image" from TARGET, or that of a process\'s mean '
        'over its "batch" (DR\'s code), which lets images differ in cost.',
        choices=("image", "batch"),
        source="DivDR, Eq. 3",
    )
    start: float = setting(0.4, "When the loss switches on.", unit=WHEN, low=0)
    ramp: float = setting(0.02, "Over how long its weight grows to WEIGHT.", unit=WHEN, low=0)
    target_share: float = setting(
        0.0,
        "Share of what runs with all gates open, both without the stem, which always runs; 0 is "
        "off.",
        low=0,
        below=1,
    )
    target_gflops: float = setting(
        0.0,
        "Cost of the backbone per training image as padded, stem included; 0 is off.",
        unit="10⁹ multiply-adds",
        low=0,
    )
    target_start: float = setting(
        0.2, 'From when the set point falls from "all open" to the target.', unit=WHEN, low=0
    )
    target_ramp: float = setting(
        0.3,
        "Over how long it falls. The rest of training holds it. It must be down well before the "
        "learning rate falls by a step: gates that hardly move any more cannot be steered.",
        unit=WHEN,
        low=0,
    )
    target_gain: float = setting(
        200.0,
        "Loss weight by an error of 1 in share. Twice as much follows closer, ten times "
        "oscillates. While the target is held it grows as the learning rate falls, to three times "
        "as much.",
        above=0,
    )
    target_memory: int = setting(
        50, "In how long a lasting error doubles that weight.", unit="iterations", low=1
    )
    target_calibration: int = setting(
        200,
        "Training images, as evaluation sees them, by which the end of training corrects a cost "
        "that is more than 2 % above the target: what is open least is closed. They run once, or "
        "some ten times. 0 is off.",
        unit="images",
        low=0,
    )
    fix_route: float = setting(
        0.0,
        "When all images get one route, the one that most opened lately and that costs the target; "
        "its gates then say how far transforms are open, not whether. 0 is never.",
        unit=WHEN,
        low=0,
    )
    freeze_gates: float = setting(
        0.0,
        'When gates of an early look (`GATE "early"`) are trained no longer, so that each image '
        "keeps its route while the rest learns. 0 is never.",
        unit=WHEN,
        low=0,
    )
    target_temperature: float = setting(
        1.0,
        "Gates up to about this far from their threshold feel the loss.",
        unit="logits",
        above=0,
    )


@dataclass(frozen=True)
class ExplorationSettings(Settings):
    """Training steps whose routes are not the gates' own, so that more of the space is trained.

    Neither paper has it; docs/results/static_controls.md says what it did.
    """

    KEY: ClassVar[str] = "MODEL.ROUTING.EXPLORATION"

    noise: float = setting(
        0.0,
        "Standard deviation of normal noise on the gates at the start; 0 is off.",
        unit="logits",
        low=0,
    )
    noise_until: float = setting(0.5, "When it has fallen to 0.", unit=WHEN, low=0)
    random_until: float = setting(
        0.0,
        "Until when two of three steps close transforms at random for all images: all but one of "
        "each cell, and a random share of all (the sandwich rule).",
        unit=WHEN,
        low=0,
        source="Yu & Huang, ICCV 2019",
    )


@dataclass(frozen=True)
class DistillationSettings(Settings):
    """Learning from the maps of a trained network of the same space that opens everything.

    Neither paper has it; docs/results/static_controls.md says what it did.
    """

    KEY: ClassVar[str] = "MODEL.ROUTING.DISTILLATION"

    weights: str = setting(
        "",
        'Checkpoint of a network of the same settings but GATE "none" and no ROUTE, the teacher; '
        '"" is off. It runs on every training image.',
    )
    weight: float = setting(
        1.0,
        "Weight of the distance between maps, the mean square over that of the teacher's.",
        above=0,
        source="Romero et al., ICLR 2015",
    )


@dataclass(frozen=True)
class KMeansSettings(Settings):
    """How K-means runs."""

    KEY: ClassVar[str] = "MODEL.ROUTING.CLUSTERING.KMEANS"

    backend: str = setting(
        "torch",
        '"torch" (on the activations\' device) or "sklearn" (CPU).',
        choices=("torch", "sklearn"),
    )
    restarts: int = setting(10, "Restarts of K-means.", low=1)
    warm_start: bool = setting(
        False,
        "Go on from the present centres instead: cheaper, but when the gates move (the budget "
        "switching on, say) it can stay in a poor partition, with two centres close together.",
    )


@dataclass(frozen=True)
class ClusteringSettings(Settings):
    """Diversified gate clustering (DivDR, Section 3.2)."""

    KEY: ClassVar[str] = "MODEL.ROUTING.CLUSTERING"

    enabled: bool = setting(
        True,
        "Keep the activation bank and run K-means. With WEIGHT 0 this only measures (plain DR), "
        "and checkpoints leave the bank out, unless STOP_ITER ends the run.",
    )
    weight: float = setting(
        0.1, "λ2, weight of the clustering loss; 0 only measures.", low=0, source="DivDR, Eq. 3"
    )
    num_experts: int = setting(
        3,
        "K, number of experts; 1 is the pull term alone. At least 1 where ENABLED.",
        source="DivDR, Section 3.2",
    )
    margin: float = setting(1.0, "α, margin of the clustering loss.", low=0, source="DivDR, Eq. 2")
    squared: bool = setting(
        False,
        "Square the distances of Eq. 2, as the magnet loss does; the paper prints plain norms.",
        source="DivDR, Eq. 2",
    )
    sigma2_floor: float = setting(
        1e-4,
        "Smallest σ² that Eq. 2 divides by.",
        unit="squared activation units",
        above=0,
    )
    gates: str = setting(
        "after",
        'Cluster gates "after" their non-linearity or "before" it.',
        choices=("after", "before"),
        source="DivDR, supplement 7.2",
    )
    bank: str = setting(
        "latest",
        'Which activations are clustered. "latest": of every training image, from when it was last '
        "trained on, on average 7/12 of an epoch ago: 220 iterations on Cityscapes at batch 8, but "
        "4,300 on COCO at batch 16, where the first 7,300 iterations cluster a part besides. "
        '"recent": likewise, but of the last BANK_ITERATIONS iterations alone. "subset" (COCO\'s '
        "configs): of BANK_IMAGES training images, evaluated anew before every clustering; "
        '"exact": of all of them. These two run the backbone alone, in evaluation mode. '
        "The ablations compare them.",
        choices=("latest", "recent", "subset", "exact"),
    )
    bank_iterations: int = setting(
        100,
        'How far "recent" looks back. 100 are two of the PERIODs below, so that half of the '
        "images of a clustering were in the one before, and the paper's bound for the time between "
        "two; at batch 16 they hold 1,600 images.",
        unit="iterations",
        low=1,
    )
    bank_images: int = setting(
        500,
        'Training images of "subset", drawn once by SEED, the same ones each time. 500 forwards '
        "every 50 iterations of 16 images are a fifth of the backbone's multiply-adds in training.",
        unit="images",
        low=1,
    )
    scaling: str = setting(
        "none",
        'Distances between activations, in K-means and the loss: "none" takes A as it is; "std" '
        "divides each gate by its spread, so that those that open and close fully do not decide "
        "alone (divdr.experts.gate_weights). It helped in some runs of "
        "the controlled study and not in others.",
        choices=("none", "std"),
    )
    partition: str = setting(
        "kmeans",
        '"kmeans", or "mixture": Gaussians of one shared covariance, for subsets of very unequal '
        "size or with much variation that does not matter (divdr.experts.gaussian_mixture, on rank "
        "0's CPU: 1 s for Cityscapes, 5 s for all of COCO, and much less where it goes on from a "
        "fit before).",
        choices=("kmeans", "mixture"),
    )
    stability: float = setting(
        0.0,
        "The loss waits until two clusterings in succession agree this much; 0 does not wait.",
        unit="adjusted Rand index, 1 for the same clusters",
        low=0,
        high=1,
    )
    labels: str = setting(
        "",
        "JSON file {image: subset from 0} whose subsets take the place of K-means, to measure what "
        "it leaves to find; an image goes by its file's name without ending, or its whole key "
        '(divdr.image_keys). "" clusters. "$" variables of the environment are filled in.',
    )
    start: float = setting(0.0, "When K-means first runs.", unit=WHEN, low=0)
    period: int = setting(
        50,
        "K-means runs every so many iterations from START on.",
        unit="iterations",
        low=1,
        source="DivDR",
    )
    period_growth: float = setting(
        1.0,
        "Each period is this many times the one before (annealing); 1 is off.",
        low=1,
        source="DivDR, supplement 7.1",
    )
    kmeans: KMeansSettings = KMeansSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.enabled and self.num_experts < 1:
            raise ConfigError(f"{self.KEY}.NUM_EXPERTS must be at least 1, not {self.num_experts}")


@dataclass(frozen=True)
class BalanceSettings(Settings):
    """What keeps the experts of routing layers in use: losses and noise (Ramachandran & Le)."""

    balance_weight: tuple[float, float] = setting(
        (0.1, 0.0),
        "Weight of the importance and the load loss as training starts and as it ends, linear "
        "between; two numbers. They are sums over all decisions.",
        low=0,
        source="Ramachandran & Le, Section 4.2",
    )
    balance_steps: int = setting(
        8,
        "M, steps whose images these losses sum over, the present one and earlier ones: a "
        "detector's batch is too small to tell how experts are used. The paper's is 1.",
        low=1,
    )
    noise: float = setting(
        1.0,
        "Multiple of the noise that gates add to their scores in training: a standard normal "
        "number times softplus(x·W_noise). With 0 there is none, and a gate, whose scores start "
        "equal, begins with the first k experts for every image.",
        low=0,
        source="Ramachandran & Le, Section 2.1",
    )


@dataclass(frozen=True)
class OpGateSettings(BalanceSettings):
    """Operations of a cell chosen for each image, beside its paths (Ramachandran & Le)."""

    KEY: ClassVar[str] = "MODEL.ROUTING.OP_GATE"

    name: str = setting(
        "sum",
        '"sum": every cell sums all of OPS (DR). "noisy_top_k": a gate chooses k of them for each '
        "image, which run on the images that chose them and are weighted by the gate. The budget "
        "loss stays on paths, and the initial cell sums.",
        choices=("sum", "noisy_top_k"),
        source="Ramachandran & Le, Section 2.1",
    )
    k_first: int = setting(
        2, "k of the cells of the first layer, at most the number of OPS.", low=1
    )
    k_last: int = setting(
        1, "k of those of the last; between them it changes in equal steps (k-annealing).", low=1
    )


@dataclass(frozen=True)
class RoutingSettings(Settings):
    """The routing space and what runs in it."""

    KEY: ClassVar[str] = "MODEL.ROUTING"

    layers: int = setting(
        16,
        "Layers of cells. Layer l has min(l + 2, SCALES) cells, strides 4 to 4·2^s.",
        low=1,
        source="DR, Section 3.1",
    )
    scales: int = setting(4, "Most cells of a layer.", low=1, source="DR, Section 3.1")
    scales_per_layer: tuple[int, ...] = setting(
        (),
        "Number of cells of each layer, one entry a layer; empty: by the rule above. Layer17 is "
        "[2, 3, 4, …, 4, 5] with LAYERS 17.",
        low=1,
        source="DR, Section 3.1",
    )
    channels: int = setting(
        64,
        "Channels at stride 4, an even number; stride 4·2^s has 2^s times as many.",
        low=2,
        source="DR",
    )
    stem_channels: int = setting(
        64,
        "Channels inside the stem, up to its last convolution. It always runs: where CHANNELS are "
        "few, 64 make it half of the cost, which no gate can save.",
        low=1,
        source="DR's code",
    )
    ops: tuple[str, ...] = setting(
        ("sep_conv_3x3", "skip_connect"),
        "Operations that a cell sums: see divdr.routing.op_names().",
        not_empty=True,
        source="DR",
    )
    gate: str = setting(
        "small",
        '"small": gates look at maps shrunk ×1/4 (DR-A to C); "full" (DR-Raw); "static": gates '
        "learn one number a transform and look at nothing, so that all images share a route, the "
        'control that tells what routing each image for itself is worth; "early": one look at the '
        "whole image decides all of its route before anything runs, so that gates do not share the "
        "layers that they switch (BlockDrop; the initial cell then is always open); "
        '"none": no gates, every path open (the "Fix" network).',
        choices=("small", "full", "static", "early", "none"),
        source="DR",
    )
    gate_bias: float = setting(
        1.5,
        "Start value of the gates' last bias; 1.5 opens every gate to tanh(1.5) = 0.9.",
        unit="logits",
        source="DR",
    )
    gate_bias_cost: float = setting(
        0.0,
        "How far below GATE_BIAS the gate of a transform starts that costs as much as its whole "
        "cell; keep costs next to nothing, up and down a sixth to a fifth. 0 starts all alike, as "
        "an early look always does.",
        unit="logits",
        low=0,
    )
    gate_floor: float = setting(
        0.0,
        "Least value of a gate that is open: a logit x above 0 gives tanh(x + artanh(GATE_FLOOR)), "
        "so that a cost target cannot press all gates to next to nothing in place of closing some. "
        "That is what happens in long trainings of an early look; 0.5 keeps them away from it. "
        "Gates that a route keeps open do without.",
        unit="gate value",
        low=0,
        below=1,
    )
    gate_threshold: float = setting(
        0.0,
        "Transforms whose gates are not further open are closed: what is open least goes first, "
        "and a trained model costs less. `divdr calibrate` finds the number for a cost. Training "
        "refuses it.",
        unit="logits; a gate is their tanh",
        low=0,
    )
    route: str = setting(
        "",
        "JSON file of a route (docs/guide/controls.md): the network has the cells and transforms "
        "that it opens and no others, from the start of training. Gates, if there are any, say how "
        'far these are open, never whether, unless ROUTE_GATES says so; with GATE "none" they are '
        'open at 1. "$" variables of the environment are filled in, and a path below "configs" '
        'that is not there is one that divdr brings along; "" is the whole space.',
    )
    route_gates: str = setting(
        "open",
        'Gates on a ROUTE: "open" keeps all of them open, so that every image takes the whole '
        'route; "decide" lets each image close them, as in the whole space, which `divdr export '
        "--trim` needs.",
        choices=("open", "decide"),
    )
    reach: str = setting(
        "open",
        '"open": a cell runs for an image where an open path leads into it. "published": cells '
        "next to an open cell always run, on zeros if need be, as in DR's published code; weights "
        "that it trained want this.",
        choices=("open", "published"),
    )
    inference: str = setting(
        "plan",
        'What runs in evaluation: "plan" (weights folded, batches grouped by route; the same '
        'results in less time), "specialised" (a plan that then expects the routes of the first '
        'INFERENCE_IMAGES images; the same results) or "reference" (the network that is trained). '
        "Training never uses a plan.",
        choices=("plan", "specialised", "reference"),
    )
    inference_images: int = setting(
        64,
        'INFERENCE "specialised" expects the routes of so many images, the first that it sees.',
        unit="images",
        low=1,
    )
    inference_dtype: str = setting(
        "float32",
        'Precision of plans: "float32" (the weights\' own) or "bfloat16" (gates still decide in '
        "fp32).",
        choices=("float32", "bfloat16"),
    )
    static_experts: str = setting(
        "",
        "File of tools/export_experts.py: evaluation then runs its static experts behind a "
        'dispatcher; "" runs the network as it was trained.',
    )
    dial: float = setting(
        -1.0,
        "Cost of a trained model between the cheapest, 0, and the dearest, 1, of the settings that "
        "`divdr calibrate` put into its checkpoint; below 0 it runs as its weights stand. Training "
        "refuses it.",
        unit="position, in even steps of real share",
        low=-1,
        high=1,
    )
    conditional_training: bool = setting(
        False,
        "Leave out of training what no image of a batch opens. The same losses and gradients, in "
        "less time where many gates are closed; BatchNorm's running statistics of such parts stay "
        "as they are.",
    )
    norm: str = setting(
        "",
        'Normalisation by Detectron2\'s names; "" is SyncBN where several processes train, and BN '
        "otherwise. Their statistics move by batches of which some image reaches the cell alone.",
    )
    drop_path: float = setting(
        0.0,
        "Largest drop path probability: grows with depth and linearly over training; 0 is off.",
        low=0,
        below=1,
    )
    op_gate: OpGateSettings = OpGateSettings()
    budget: BudgetSettings = BudgetSettings()
    exploration: ExplorationSettings = ExplorationSettings()
    distillation: DistillationSettings = DistillationSettings()
    clustering: ClusteringSettings = ClusteringSettings()
    cost_sizes: tuple[tuple[int, int], ...] = setting(
        (),
        "Sizes (height, width) at which evaluation also reports GFLOPs of the routes taken; the "
        "paper's tables are at 1024×2048 for Cityscapes and 800×800, neck included, for COCO.",
        unit="pixels",
    )
