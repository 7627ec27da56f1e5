"""Settings of input and solver that divdr adds to Detectron2's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import ConfigError
from .field import Range, Settings, setting

# Pixels: where no memory holds them, the image at hand would be blamed.
_LONGEST = 2**14


@dataclass(frozen=True)
class PrecisionSettings(Settings):
    """Mixed precision, beside Detectron2's ENABLED."""

    KEY: ClassVar[str] = "SOLVER.AMP"

    dtype: str = setting(
        "float16",
        'Precision of SOLVER.AMP.ENABLED, on GPUs and CPUs: "float16" (its gradients are scaled) '
        'or "bfloat16".',
        choices=("float16", "bfloat16"),
    )


@dataclass(frozen=True)
class AverageSettings(Settings):
    """Average of the weights over the last steps, evaluated beside them and saved."""

    KEY: ClassVar[str] = "SOLVER.EMA"

    enabled: bool = setting(
        False,
        "Keep an exponential moving average of the weights. It is evaluated beside the model and "
        "written as model_ema.pth (docs/guide/train.md).",
    )
    decay: float = setting(
        0.999,
        "Of the average, each step: the weights of the last 1 / (1 − DECAY) steps count.",
        low=0,
        below=1,
    )
    warm_up: bool = setting(
        True, "In step t the decay is at most (1 + t) / (10 + t), so that early weights fade."
    )


@dataclass(frozen=True)
class SolverSettings(Settings):
    """Optimiser and schedule, beside Detectron2's keys."""

    KEY: ClassVar[str] = "SOLVER"

    amp: PrecisionSettings = PrecisionSettings()
    ema: AverageSettings = AverageSettings()
    gate_lr_factor: float = setting(
        1.0,
        "Learning rate of the gates as a multiple of the others' (2.5 in DR's recipe from "
        "pretrained weights).",
        low=0,
        source="DR",
    )
    loss_check_period: int = setting(
        0,
        "Look at the losses, and log them, every so many iterations. A loss that is not finite "
        "never reaches the weights: with more than 1 the device skips its step, and training stops "
        "at the next look. 0: every 20 iterations on a GPU, which must not wait for each, and "
        "every iteration on a CPU.",
        unit="iterations",
        low=0,
    )
    accumulate: int = setting(
        1,
        "Run each batch in so many parts of equal size, one after the other, and step once: memory "
        "of a part, gradients of the batch (docs/guide/train.md says where they differ). "
        "IMS_PER_BATCH stays the images of a step, so that learning rates stay valid.",
        unit="parts",
        low=1,
    )
    stop_iter: int = setting(
        0,
        "Stop after this many iterations of the schedule that MAX_ITER sets; 0: after all. Resumed "
        "with 0, the run goes on as if it had not stopped (studies fork paired runs there).",
        unit="iterations",
        low=0,
    )
    poly_lr_power: float = setting(
        0.9,
        'Power of LR_SCHEDULER_NAME "WarmupPolyLR": base · (1 − i / MAX_ITER)^power.',
        low=0,
        source="DR",
    )
    step_factors: tuple[float, ...] = setting(
        (),
        'Multiples of BASE_LR after each of STEPS, for LR_SCHEDULER_NAME "WarmupStepFactorsLR".',
        low=0,
    )
    restarts: tuple[float, ...] = setting(
        (),
        'Where LR_SCHEDULER_NAME "WarmupCosineRestartsLR" starts its cosine anew; empty: at the '
        "starts of the model's stages, if it trains in stages.",
        unit="iterations, or shares of training if below 1",
        low=0,
    )


@dataclass(frozen=True)
class WandbSettings(Settings):
    """Figures of training for Weights & Biases (wandb, which is installed apart)."""

    KEY: ClassVar[str] = "WANDB"

    enabled: bool = setting(
        False, "Send figures and configuration to wandb; a resumed run goes on in the same place."
    )
    project: str = setting("divdr", "wandb's project.")
    name: str = setting("", 'Name of the run there; "" is that of OUTPUT_DIR\'s folder.')


@dataclass(frozen=True)
class OptimizerSettings(Settings):
    """The key of Panoptic-DeepLab's project that divdr's own optimiser reads, in all models."""

    KEY: ClassVar[str] = "SOLVER"

    optimizer: str = setting(
        "SGD",
        '"SGD", "ADAM" (what Panoptic-DeepLab trains with, and its project\'s own default) or '
        '"ADAMW".',
        choices=("SGD", "ADAM", "ADAMW"),
    )


@dataclass(frozen=True)
class DatasetSettings(Settings):
    """Data sets of one's own, and how several are mixed, beside Detectron2's keys."""

    KEY: ClassVar[str] = "DATASETS"

    custom: tuple[Any, ...] = setting(
        (),
        "Data sets that TRAIN and TEST can then name: a yaml file of entries (name, kind, paths, "
        "classes, split, ...; docs/guide/own_data.md), an entry, or a list of both. Paths start "
        "from the folder of the file that they stand in, or with $DETECTRON2_DATASETS. A "
        "configuration that is loaded holds entries alone, with whole paths.",
    )
    fit: bool = setting(
        False,
        "Before training take from the data of TRAIN what they decide: classes, sizes of images "
        "and iterations (divdr.engine.fit_to_data). What the command line sets stays. The "
        "config.yaml of the run has the numbers, and False.",
    )
    train_repeat_factor: tuple[Any, ...] = setting(
        (),
        'Pairs (name, factor) for SAMPLER_TRAIN "WeightedTrainingSampler" and '
        '"WeightedCategoryTrainingSampler": how often a pass shows each image of that data set of '
        "TRAIN, on average; others once.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for pair in self.train_repeat_factor:
            fine = isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str)
            if not fine or pair[1] not in Range(low=0):
                raise ConfigError(
                    f"{self.KEY}.TRAIN_REPEAT_FACTOR must hold pairs of a data set's name and a "
                    f"number from 0, not {pair!r}"
                )


@dataclass(frozen=True)
class LoaderSettings(Settings):
    """Which training images are drawn, beside Detectron2's keys."""

    KEY: ClassVar[str] = "DATALOADER"

    random_subset_ratio: float = setting(
        1.0,
        'SAMPLER_TRAIN "RandomSubsetTrainingSampler" takes this share of the images. Detectron2 '
        "has no default for it.",
        above=0,
        high=1,
    )


@dataclass(frozen=True)
class ClassificationInputSettings(Settings):
    """Mapper "classification". INPUT.RANDOM_FLIP says whether its images are flipped."""

    KEY: ClassVar[str] = "INPUT.CLASSIFICATION"

    size: int = setting(
        0,
        "Images are made square and scaled to SIZE × SIZE; 0 leaves them as they are.",
        unit="pixels",
        low=0,
        high=_LONGEST,
    )
    square: str = setting(
        "pad",
        'How images are made square: "pad" with black, or "crop" the middle.',
        choices=("pad", "crop"),
    )
    pad_crop: int = setting(
        0,
        "Training: pad by so many pixels on every side and crop the old size anywhere; 0 is off.",
        unit="pixels",
        low=0,
        high=_LONGEST,
    )
    cutout: int = setting(
        0,
        "Training: length of the square that is cut out (mean colour); 0 is off.",
        unit="pixels",
        low=0,
    )
    test_batch: int = setting(64, "Images of a batch in evaluation.", unit="images", low=1)


@dataclass(frozen=True)
class InputSettings(Settings):
    """Reading images, beside Detectron2's keys."""

    KEY: ClassVar[str] = "INPUT"

    dataset_mapper_name: str = setting(
        "",
        '"semantic_crop" is divdr.data.SemanticCropMapper, "panoptic_deeplab" that project\'s '
        'mapper, "classification" divdr.data.ClassificationMapper, "" Detectron2\'s.',
        choices=("semantic_crop", "panoptic_deeplab", "classification", ""),
    )
    crop_padding: str = setting(
        "mean",
        '"semantic_crop": what images smaller than the crop are filled up with. "mean" pixel, 0 '
        'after normalisation, as Detectron2 fills up batches; or "black", 0 before it (DR\'s '
        "code).",
        choices=("mean", "black"),
    )
    extra_augmentations: tuple[str, ...] = setting(
        (),
        'Also in Detectron2\'s mapper, after resize and flip: "vertical_flip", "quarter_turns" '
        '(for images from above), "colour" (brightness and contrast ×0.7 to 1.3, saturation ×0.5 '
        "to 1.5).",
    )
    classification: ClassificationInputSettings = ClassificationInputSettings()
