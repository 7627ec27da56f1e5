"""Every configuration key that divdr adds to Detectron2's, with its meaning, unit and source.

DR is Li et al., "Learning Dynamic Routing for Semantic Segmentation" (CVPR 2020); DivDR is
"Diversified Dynamic Routing for Vision Tasks".
"""

from __future__ import annotations

from importlib import import_module

from detectron2.config import CfgNode, get_cfg


def add_divdr_config(cfg: CfgNode) -> None:
    """Add divdr's keys, with their defaults, to a Detectron2 config."""
    cfg.MODEL.ROUTING = CfgNode()
    routing = cfg.MODEL.ROUTING

    # Routing space (DR, Section 3.1). Layer l has min(l + 2, SCALES) cells, strides 4 to 4·2^s.
    routing.LAYERS = 16
    routing.SCALES = 4
    # Number of cells of each layer, one entry a layer; empty: by the rule above. Layer17 is
    # [2, 3, 4, …, 4, 5] with LAYERS 17.
    routing.SCALES_PER_LAYER = []
    # Channels at stride 4; stride 4·2^s has 2^s times as many.
    routing.CHANNELS = 64
    # Operations that a cell sums: see divdr.routing.op_names().
    routing.OPS = ["sep_conv_3x3", "skip_connect"]
    # "small": gates look at maps shrunk ×1/4 (DR-A to C); "full" (DR-Raw); "none": no gates, every
    # path open (the "Fix" network).
    routing.GATE = "small"
    # Start value of the gates' last bias, in logits; 1.5 opens every gate to tanh(1.5) = 0.9.
    routing.GATE_BIAS = 1.5
    # "open": a cell runs for an image where an open path leads into it. "published": cells next to
    # an open cell always run, on zeros if need be, as in the published code; weights that it
    # trained want this.
    routing.REACH = "open"
    # What runs in evaluation: "plan" (weights folded, batches grouped by route; the same results in
    # less time) or "reference" (the network that is trained). Training never uses a plan.
    routing.INFERENCE = "plan"
    # Precision of plans: "float32" (the weights' own) or "bfloat16" (gates still decide in fp32).
    routing.INFERENCE_DTYPE = "float32"
    # File of tools/export_experts.py: evaluation then runs its static experts behind a dispatcher;
    # "" runs the network as it was trained.
    routing.STATIC_EXPERTS = ""
    # Leave out of training what no image of a batch opens. The same losses and gradients, in less
    # time where many gates are closed; BatchNorm's running statistics of such parts stay as they
    # are, and on a GPU every cell waits for the device once.
    routing.CONDITIONAL_TRAINING = False
    # Normalisation by Detectron2's names; "" is SyncBN where several processes train, and BN
    # otherwise. Their statistics move by batches of which some image reaches the cell alone.
    routing.NORM = ""
    # Largest drop path probability: grows with depth and linearly over training; 0 is off.
    routing.DROP_PATH = 0.0

    # Budget loss: WEIGHT · (expected cost / cost with all gates open − TARGET)² (DR, Eq. 9).
    # DR-A is 0.8 and 0.1, DR-B 0.5 and 0.1, DR-C 0.5 and 0.2.
    routing.BUDGET = CfgNode()
    routing.BUDGET.WEIGHT = 0.0  # λ1; 0 is off ("Raw")
    routing.BUDGET.TARGET = 0.1  # μ, share of the all-open cost
    # What is squared: the distance of each "image" from TARGET (DivDR, Eq. 3), or that of a
    # process's mean over its "batch" (DR's code), which lets images differ in cost.
    routing.BUDGET.PER = "image"
    # When the loss switches on: an iteration, or a share of training if below 1.
    routing.BUDGET.START = 0.4
    # Over how long its weight grows to WEIGHT, likewise.
    routing.BUDGET.RAMP = 0.02

    # In place of that loss: drive the mean *real* cost of training images to a number; one of both,
    # with WEIGHT 0 (docs/budget.md).
    # Share of what runs with all gates open, both without the stem, which always runs; 0 is off.
    routing.BUDGET.TARGET_SHARE = 0.0
    # 10⁹ multiply-adds of the backbone per training image as padded, stem included; 0 is off.
    routing.BUDGET.TARGET_GFLOPS = 0.0
    # From when, and over how long the set point falls from "all open" to the target: iterations,
    # or shares of training if below 1. The rest of training holds it. It must be down well before
    # the learning rate falls by a step: gates that hardly move any more cannot be steered.
    routing.BUDGET.TARGET_START = 0.2
    routing.BUDGET.TARGET_RAMP = 0.3
    # Loss weight by an error of 1 in share. Twice as much follows closer, ten times oscillates.
    # While the target is held it grows as the learning rate falls, to three times as much.
    routing.BUDGET.TARGET_GAIN = 200.0
    # Iterations in which a lasting error doubles that weight.
    routing.BUDGET.TARGET_MEMORY = 50
    # Training images, as evaluation sees them, by which the end of training corrects what is left
    # of the error in share, with one shift of all gates' last biases (at most ±1); they run ten
    # times, or 19 where ±0.5 leaves more than 1 %. 0 is off.
    routing.BUDGET.TARGET_CALIBRATION = 200
    # Gates up to about this far from their threshold, in logits, feel the loss.
    routing.BUDGET.TARGET_TEMPERATURE = 1.0

    # Diversified gate clustering (DivDR, Section 3.2).
    routing.CLUSTERING = CfgNode()
    clustering = routing.CLUSTERING
    # Keep the activation bank and run K-means. With WEIGHT 0 this only measures (plain DR), and
    # checkpoints leave the bank out, unless STOP_ITER ends the run.
    clustering.ENABLED = True
    clustering.WEIGHT = 0.1  # λ2 of Eq. 3
    clustering.NUM_EXPERTS = 3  # K; 1 is the pull term alone
    clustering.MARGIN = 1.0  # α of Eq. 2
    # Square the distances of Eq. 2, as the magnet loss does; the paper prints plain norms.
    clustering.SQUARED = False
    # Smallest σ² that Eq. 2 divides by, squared activation units.
    clustering.SIGMA2_FLOOR = 1e-4
    # Cluster gates "after" their non-linearity or "before" it (supplement 7.2).
    clustering.GATES = "after"
    # Which activations are clustered. "latest": of every training image, from when it was last
    # trained on, on average 7/12 of an epoch ago: 220 iterations on Cityscapes at batch 8, but
    # 4,300 on COCO at batch 16, where the first 7,300 iterations cluster a part besides. "recent":
    # likewise, but of the last BANK_ITERATIONS iterations alone. "subset" (COCO's configs): of
    # BANK_IMAGES training images, evaluated anew before every clustering; "exact": of all of them.
    # These two run the backbone alone, in evaluation mode. docs/ablations.md compares them.
    clustering.BANK = "latest"
    # Iterations that "recent" looks back. 100 are two of the PERIODs below, so that half of the
    # images of a clustering were in the one before, and the paper's bound for the time between two;
    # at batch 16 they hold 1,600 images.
    clustering.BANK_ITERATIONS = 100
    # Training images of "subset", drawn once by SEED, the same ones each time. 500 forwards every
    # 50 iterations of 16 images are a fifth of the backbone's multiply-adds in training.
    clustering.BANK_IMAGES = 500
    # Distances between activations, in K-means and the loss: "none" takes A as it is; "std" divides
    # each gate by its spread, so that those that open and close fully do not decide alone
    # (divdr.experts.gate_weights). It helped in some runs and not in others, see
    # docs/controlled_study.md.
    clustering.SCALING = "none"
    # "kmeans", or "mixture": Gaussians of one shared covariance, for subsets of very unequal size
    # or with much variation that does not matter (divdr.experts.gaussian_mixture, on rank 0's CPU:
    # 1 s for Cityscapes, 5 s for all of COCO, and much less where it goes on from a fit before).
    clustering.PARTITION = "kmeans"
    # The loss waits until two clusterings in succession agree this much (adjusted Rand index, 1 for
    # the same clusters); 0 does not wait.
    clustering.STABILITY = 0.0
    # JSON file {image: subset from 0} whose subsets take the place of K-means, to measure what it
    # leaves to find; an image goes by its file's name without ending, or its whole key
    # (divdr.image_keys). "" clusters. "$" variables of the environment are filled in.
    clustering.LABELS = ""
    # K-means every PERIOD iterations from START on (iteration, or share of training if below 1).
    clustering.START = 0.0
    clustering.PERIOD = 50
    # Each period is this many times the one before (supplement 7.1 suggests annealing); 1 is off.
    clustering.PERIOD_GROWTH = 1.0
    # K-means: "torch" (on the activations' device) or "sklearn" (CPU), and its restarts.
    # WARM_START goes on from the present centres instead: cheaper, but when the gates move (the
    # budget switching on, say) it can stay in a poor partition, with two centres close together.
    clustering.KMEANS = CfgNode()
    clustering.KMEANS.BACKEND = "torch"
    clustering.KMEANS.RESTARTS = 10
    clustering.KMEANS.WARM_START = False

    # Sizes (height, width) at which evaluation also reports GFLOPs of the routes taken; the
    # paper's tables are at 1024×2048 for Cityscapes and 800×800, neck included, for COCO.
    routing.COST_SIZES = []

    # Precision of SOLVER.AMP.ENABLED, on GPUs and CPUs: "float16" (its gradients are scaled) or
    # "bfloat16".
    cfg.SOLVER.AMP.DTYPE = "float16"
    # Learning rate of the gates as a multiple of the others' (2.5 in DR's recipe from pretrained
    # weights).
    cfg.SOLVER.GATE_LR_FACTOR = 1.0
    # Stop after this many iterations of the schedule that MAX_ITER sets; 0: after all. Resumed with
    # 0, the run goes on as if it had not stopped (studies fork paired runs there).
    cfg.SOLVER.STOP_ITER = 0
    # Power of LR_SCHEDULER_NAME "WarmupPolyLR": base · (1 − i / MAX_ITER)^power.
    cfg.SOLVER.POLY_LR_POWER = 0.9

    # Multiples of BASE_LR after each of STEPS, for LR_SCHEDULER_NAME "WarmupStepFactorsLR".
    cfg.SOLVER.STEP_FACTORS = []
    # Where LR_SCHEDULER_NAME "WarmupCosineRestartsLR" starts its cosine anew: iterations, or shares
    # of training if below 1.
    cfg.SOLVER.RESTARTS = []

    # SAMPLER_TRAIN "RandomSubsetTrainingSampler" takes this share of the images. Detectron2 has
    # no default for it.
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 1.0

    # "semantic_crop" is divdr.data.SemanticCropMapper, "panoptic_deeplab" that project's mapper,
    # "classification" divdr.data.ClassificationMapper, "" Detectron2's.
    cfg.INPUT.DATASET_MAPPER_NAME = ""
    # "semantic_crop": what images smaller than the crop are filled up with. "mean" pixel, 0 after
    # normalisation, as Detectron2 fills up batches; or "black", 0 before it (DR's code).
    cfg.INPUT.CROP_PADDING = "mean"
    # Also in Detectron2's mapper, after resize and flip: "vertical_flip", "quarter_turns" (for
    # images from above), "colour" (brightness and contrast ×0.7 to 1.3, saturation ×0.5 to 1.5).
    cfg.INPUT.EXTRA_AUGMENTATIONS = []

    add_classifier_config(cfg)
    add_roi_heads_config(cfg)


def add_classifier_config(cfg: CfgNode) -> None:
    """Add the keys of image classification (``MODEL.META_ARCHITECTURE "ImageClassifier"``).

    Their source is the DynK-Hydra paper ("Dynamic top-K ensemble ...", 2023) where none is named;
    that of ``COE`` the Collaboration of Experts paper.
    """
    cfg.MODEL.CLASSIFIER = CfgNode()
    classifier = cfg.MODEL.CLASSIFIER
    # The system: "build_single_classifier", "build_ensemble_classifier", "build_hydra_classifier"
    # (HydraRes and DynK-Hydra) or "build_coe_classifier" (Collaboration of Experts); more by
    # divdr.modeling.CLASSIFIER_REGISTRY.
    classifier.NAME = "build_single_classifier"
    classifier.NUM_CLASSES = 10
    # "resnet" or "densenet" (the paper's, in parts), or a whole classifier of a library,
    # "torchvision:NAME" or "timm:NAME" (single network, ensemble and experts).
    classifier.ARCHITECTURE = "resnet"
    # "" is the architecture's own stem; else "torchvision:NAME.NODE" or "timm:NAME.LEVEL".
    classifier.STEM = ""
    # Take the library's weights for what is named after one. For grey images the first convolution
    # is summed over the colours; for C channels, 3 excepted, it is repeated, times 3 / C.
    classifier.PRETRAINED = False
    # d: blocks a stage (resnet), or multiple of the layers of a block (densenet).
    classifier.DEPTH = 1
    # Channels of resnet's first stage; the others have two and four times as many.
    classifier.CHANNELS = 16
    # densenet: channels that a layer adds, and layers of the three blocks at DEPTH 1.
    classifier.GROWTH = 3
    classifier.DENSE_LAYERS = [3, 6, 12]
    # ws, wb, wg: multiples of the channels in stem, branches and gater.
    classifier.STEM_WIDTH = 1.0
    classifier.BRANCH_WIDTH = 1.0
    classifier.GATER_WIDTH = 1.0
    # Depthwise-separable convolutions (CUB-200 in the paper).
    classifier.SEPARABLE = False
    # resnet: "small" for images of about 32 × 32 pixels, "large" for 224 × 224.
    classifier.ENTRY = "small"
    # Ensemble: number of networks, all of which run.
    classifier.MEMBERS = 4

    classifier.HYDRA = CfgNode()
    hydra = classifier.HYDRA
    hydra.BRANCHES = 20  # nb
    _add_gating_keys(hydra)
    # Classes of each branch: "cluster" (Algorithm 2), "random", "coarse" (the data set's own
    # super-classes), or "file" (tools/partition_classes.py).
    hydra.PARTITION = "cluster"
    hydra.PARTITION_FILE = ""
    # What "cluster" embeds images by: "pixels", "torchvision:NAME" or "timm:NAME" with that
    # library's weights. By a model of one's own: tools/partition_classes.py.
    hydra.EMBEDDER = "pixels"

    # "Collaboration of Experts: Achieving 80% Top-1 Accuracy on ImageNet with 100M FLOPs".
    classifier.COE = CfgNode()
    coe = classifier.COE
    # n. Experts are whole networks by the keys above; one value an expert here makes them differ.
    # 1 is the paper's ablation without LGM: one expert behind a delegator that ends early.
    coe.EXPERTS = 4
    coe.ARCHITECTURES = []
    coe.DEPTHS = []
    coe.CHANNELS = []  # densenet: growth
    # Feature extractor of the delegator: a network as above without its last layer.
    coe.DELEGATOR_ARCHITECTURE = "resnet"
    coe.DELEGATOR_DEPTH = 1
    coe.DELEGATOR_CHANNELS = 8  # densenet: growth
    # Length of the first stage, which trains extractor and task predictor alone: iterations, or a
    # share of training if below 1. The paper does not say how long it is.
    coe.DELEGATOR_STAGE = 0.3
    # Checkpoint of a trained collaboration whose delegator is taken over; the first stage is left
    # out then, and SOLVER.RESTARTS should be empty.
    coe.DELEGATOR = ""
    # The experts divide into so many subtasks, trained each for itself on the images that the
    # subtask selector sends there (appendix A.2: 16 experts, 4 subtasks). That selector is the
    # expert selector of COE.DELEGATOR, which must have as many experts.
    coe.SUBTASKS = 1
    # τ: the delegator's prediction is final where its probability is above it; 1 always asks an
    # expert. Can be changed without training anew.
    coe.THRESHOLD = 0.95
    coe.SELECTION_WEIGHT = 0.8  # η of Eq. 8
    coe.ALPHA = [0.2, 0.8]  # α of Eq. 5 at the start and the end of the second stage
    # Ablations of Table 8. WGM: "delegator" (the paper's), "labels" (WGM*), "free" (WGM°) or "none"
    # (without); WGM• is ALPHA [0.8, 0.8]. LGM: "balanced" (the paper's) or "free" (LGM*).
    coe.WGM = "delegator"
    coe.LGM = "balanced"
    coe.SRM = True
    # Knowledge distillation for task predictor and experts: "" is none, else "torchvision:NAME" or
    # "timm:NAME", which sees the images as MODEL.PIXEL_MEAN and PIXEL_STD make them. With its
    # library's weights, or those of a build_single_classifier of that ARCHITECTURE.
    coe.TEACHER = ""
    coe.TEACHER_WEIGHTS = ""
    # Share of the teacher in the loss, and temperature of both; the paper gives neither.
    coe.DISTILLATION_WEIGHT = 0.5
    coe.TEMPERATURE = 1.0
    # CondConv in the experts: kernels that every convolution mixes (4 in the paper); 0 is off.
    coe.CONDCONV = 0
    # PWLU in the experts: intervals (16 in its paper); 0 is off. For so many iterations of the
    # second stage, or such a share of it, it is ReLU and gathers the statistics that then place it.
    coe.PWLU = 0
    coe.PWLU_STATISTICS = 0.05

    # Mapper "classification". Images are made square ("pad" with black, "crop" the middle) and
    # scaled to SIZE × SIZE pixels; 0 leaves them as they are.
    cfg.INPUT.CLASSIFICATION = CfgNode()
    cfg.INPUT.CLASSIFICATION.SIZE = 0
    cfg.INPUT.CLASSIFICATION.SQUARE = "pad"
    # Training: pad by so many pixels on every side and crop the old size anywhere; 0 is off.
    # INPUT.RANDOM_FLIP says whether images are flipped.
    cfg.INPUT.CLASSIFICATION.PAD_CROP = 0
    # Training: length in pixels of the square that is cut out (mean colour); 0 is off.
    cfg.INPUT.CLASSIFICATION.CUTOUT = 0
    # Images of a batch in evaluation.
    cfg.INPUT.CLASSIFICATION.TEST_BATCH = 64


def add_roi_heads_config(cfg: CfgNode) -> None:
    """Add the keys of mixtures as box heads (``MODEL.ROI_HEADS.NAME "MixtureROIHeads"``).

    They take the place of ``MODEL.ROI_BOX_HEAD``'s NUM_CONV, CONV_DIM, NUM_FC and FC_DIM; NORM is
    that of all their convolutions.
    """
    # MODEL.ROI_BOX_HEAD.NAME "HydraBoxHead" (DynK-Hydra, on a proposal's pooled features).
    cfg.MODEL.ROI_BOX_HEAD.HYDRA = CfgNode()
    hydra = cfg.MODEL.ROI_BOX_HEAD.HYDRA
    hydra.BRANCHES = 12  # nb; COCO has 12 super-categories
    _add_gating_keys(hydra)
    # Classes of each branch: "cluster" (Algorithm 2 on the mean features of the classes' boxes, by
    # the box head as training starts), "random", "coarse" (the data set's super-categories, as
    # many as branches), or "file" (tools/partition_classes.py).
    hydra.PARTITION = "cluster"
    hydra.PARTITION_FILE = ""
    # Channels of the stem's convolutions, and their kernel.
    hydra.STEM_CONV_DIMS = [64]
    hydra.STEM_KERNEL = 1
    # Layers of each branch: channels of 3 × 3 convolutions, then sizes of linear layers.
    hydra.BRANCH_CONV_DIMS = []
    hydra.BRANCH_FC_DIMS = [512, 512]
    # Width of the gater's layer, which sees the mean of the stem's map.
    hydra.GATER_DIM = 64

    # MODEL.ROI_BOX_HEAD.NAME "CoEBoxHead" (Collaboration of Experts, likewise).
    cfg.MODEL.ROI_BOX_HEAD.COE = CfgNode()
    coe = cfg.MODEL.ROI_BOX_HEAD.COE
    coe.EXPERTS = 4  # n
    # τ: a proposal ends at the delegator if its largest class probability, background's included,
    # is above. Can be changed without training anew; 1 sends all proposals on, 0 none.
    coe.THRESHOLD = 0.9
    # When the second stage begins, in which selector and experts train: an iteration, or a share
    # of training if below 1.
    coe.START = 0.3
    # α of the experts' loss weights at the start of that stage and at its end (Eq. 5).
    coe.ALPHA = [0.2, 0.8]
    coe.SELECTOR_WEIGHT = 0.8  # η of Eq. 8
    # Let the delegator learn no more in that stage, BatchNorm included, as the paper has it. There
    # nothing under the delegator moves; here the maps under it do.
    coe.FREEZE_DELEGATOR = False
    # Layers of the delegator: convolutions, their kernel, and linear layers.
    coe.DELEGATOR_CONV_DIMS = [64]
    coe.DELEGATOR_KERNEL = 1
    coe.DELEGATOR_FC_DIMS = [256]
    # Layers of each expert: channels of 3 × 3 convolutions, then sizes of linear layers.
    coe.EXPERT_CONV_DIMS = []
    coe.EXPERT_FC_DIMS = [1024, 1024]


def _add_gating_keys(hydra: CfgNode) -> None:
    """Add the keys that Hydras have as classifiers and as box heads."""
    hydra.TOP_K = 4  # K: branches that run at most for an image or a proposal
    # τ of evaluation: a branch of the top K runs if the gater gives it this probability; 0 is the
    # fixed K of HydraRes. Can be changed without training anew. 0.08 is the value for which the
    # paper's Table 6 repeats its main results.
    hydra.THRESHOLD = 0.08
    # τ of training: Eq. 6 stands in the loss too. With 0 here the combiner learns sums of K maps
    # and meets fewer in evaluation.
    hydra.TRAIN_THRESHOLD = 0.08
    # α1 (of a box head: of the classes' loss), α2, α3 of Eq. 7. BRANCH_WEIGHT 0 leaves out the
    # branches' extra heads (HydraRes).
    hydra.ENSEMBLE_WEIGHT = 1.0
    hydra.GATER_WEIGHT = 1.5
    hydra.BRANCH_WEIGHT = 0.05


def add_project_configs(cfg: CfgNode) -> None:
    """Add the keys of Detectron2's projects PointRend, DeepLab and Panoptic-DeepLab.

    Those that are not installed beside Detectron2 are left out. ``SOLVER.OPTIMIZER``, which
    Panoptic-DeepLab brings along, starts as "SGD"; "ADAM" is what that project trains with.
    """
    for project, function in (
        ("point_rend", "add_pointrend_config"),
        ("deeplab", "add_deeplab_config"),
        ("panoptic_deeplab", "add_panoptic_deeplab_config"),
    ):
        try:
            module = import_module(f"detectron2.projects.{project}")
        except ImportError:
            continue
        getattr(module, function)(cfg)
    cfg.SOLVER.OPTIMIZER = "SGD"
    # DeepLab's default; Detectron2's own ResNets know no such stem.
    if "STEM_TYPE" in cfg.MODEL.RESNETS:
        cfg.MODEL.RESNETS.STEM_TYPE = "basic"


def get_divdr_config() -> CfgNode:
    """A copy of Detectron2's default config with its projects' keys and divdr's."""
    cfg = get_cfg()
    add_project_configs(cfg)
    add_divdr_config(cfg)
    return cfg
