"""Settings of machine translation by a Transformer with one decoder or several.

CoE is "Collaboration of Experts: Achieving 80% Top-1 Accuracy on ImageNet with 100M FLOPs", Section
4.4 and Appendix B.2; Transformer is Vaswani et al., "Attention Is All You Need" (2017), to whose
base model and training CoE refers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import ConfigError
from .field import Settings, setting
from .mixtures import TeachingSettings

_TRANSFORMER = "Transformer, Table 3"


@dataclass(frozen=True)
class TransformerSettings(Settings):
    """What encoder and decoders are made of; the defaults are the paper's base model.

    The big model has 1024, 4096 and 16 for WIDTH, FEEDFORWARD and HEADS, and DROPOUT 0.3.
    """

    KEY: ClassVar[str] = "TRANSLATION.MODEL"

    vocabulary: int = setting(
        37000,
        "Tokens of the vocabulary that both languages share, learned from the training text by "
        "byte-pair encoding; small texts cannot fill a large one.",
        low=32,
        source="CoE, appendix B.2",
    )
    encoder_layers: int = setting(6, "Layers of the encoder.", low=1, source=_TRANSFORMER)
    decoder_layers: int = setting(6, "Layers of each decoder.", low=1, source=_TRANSFORMER)
    width: int = setting(
        512, "d, numbers that stand for a token; even.", low=2, source=_TRANSFORMER
    )
    feedforward: int = setting(
        2048, "Width of the hidden layer after attention.", low=1, source=_TRANSFORMER
    )
    heads: int = setting(
        8, "Heads of every attention; they divide WIDTH.", low=1, source=_TRANSFORMER
    )
    dropout: float = setting(0.1, "Dropout.", low=0, below=1, source=_TRANSFORMER)
    max_tokens: int = setting(
        256, "Longest sentence; longer ones are refused.", unit="tokens", low=2
    )
    norm_first: bool = setting(
        False, "LayerNorm before attention and hidden layer, not behind them.", source="Transformer"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads or self.width % 2:
            raise ConfigError(
                f"{self.KEY}.WIDTH must be even and a multiple of the {self.heads} HEADS, not "
                f"{self.width}"
            )


@dataclass(frozen=True)
class TranslationExpertSettings(TeachingSettings):
    """Several decoders, of which one translates a sentence. 1 is a plain Transformer."""

    KEY: ClassVar[str] = "TRANSLATION.COE"

    experts: int = setting(
        4,
        "n, number of decoders. Encoder, embedding and softmax are shared.",
        low=1,
        source="CoE, Section 4.4",
    )
    alpha: tuple[float, float] = setting(
        (0.1, 0.4),
        "α at the start and the end of training; two numbers between 0 and 1.",
        low=0,
        high=1,
        source="CoE, appendix B.2",
    )
    selection_weight: float = setting(
        0.8,
        "η, weight of the expert selector's loss; the paper gives it for images.",
        low=0,
        source="CoE, Eq. 8",
    )
    selector_trains_encoder: bool = setting(
        False,
        "Let the selector's loss reach the encoder too. The paper has no stages for translation; "
        "for images the delegator's features are fixed while the selector learns.",
    )


@dataclass(frozen=True)
class TranslationTrainingSettings(Settings):
    """Optimiser, schedule and batches."""

    KEY: ClassVar[str] = "TRANSLATION.TRAINING"

    steps: int = setting(
        100000, "Steps of the optimiser.", unit="steps", low=1, source="Transformer, Section 5.2"
    )
    batch_tokens: int = setting(
        25000,
        "Tokens of a batch, padding included, of the language that has more of them.",
        unit="tokens",
        low=1,
        source="Transformer, Section 5.1",
    )
    longest: int = setting(
        0,
        "Training leaves out pairs with more tokens of either language; 0 leaves out none.",
        unit="tokens",
        low=0,
    )
    learning_rate: float = setting(
        7e-4,
        "Largest learning rate, at the end of the warm-up; the Transformer's own rule gives the "
        "base model 7·10⁻⁴.",
        above=0,
        source="Transformer, Eq. 3",
    )
    warmup: int = setting(
        4000,
        "Steps over which the learning rate grows linearly; after them it falls with the inverse "
        "square root of the step.",
        unit="steps",
        low=1,
        source="Transformer, Eq. 3",
    )
    label_smoothing: float = setting(
        0.1, "Label smoothing.", low=0, below=1, source="Transformer, Section 5.4"
    )
    clip_norm: float = setting(0.0, "Largest norm of the gradient; 0 does not clip.", low=0)
    checkpoint_period: int = setting(
        1500, "A checkpoint every so many steps, and at the end.", unit="steps", low=1
    )
    averaged: int = setting(
        5,
        "Evaluation uses the mean of so many last checkpoints.",
        low=1,
        source="CoE, appendix B.2",
    )
    seed: int = setting(0, "Start of all random numbers.", low=0)


@dataclass(frozen=True)
class BeamSearchSettings(Settings):
    """How a sentence is translated. These can be changed at any time."""

    KEY: ClassVar[str] = "TRANSLATION.SEARCH"

    beam: int = setting(4, "Width of the beam; 1 is greedy.", low=1, source="CoE, appendix B.2")
    length_penalty: float = setting(
        0.6,
        "Exponent of the length penalty ((5 + |Y|) / 6) of Wu et al. (2016), by which a "
        "translation's log-probability is divided; 0 is none.",
        low=0,
        source="CoE, appendix B.2",
    )
    extra_tokens: int = setting(
        50,
        "A translation may have so many tokens more than its source.",
        unit="tokens",
        low=0,
        source="Transformer, Section 6.1",
    )
    batch_sentences: int = setting(
        64, "Sentences that are translated together.", unit="sentences", low=1
    )


@dataclass(frozen=True)
class TranslationSettings(Settings):
    """Translation (divdr.translation), outside Detectron2.

    No keys of a configuration: tools/train_translation.py has an option for each, of its last part:
    `--warmup 4000`.
    """

    KEY: ClassVar[str] = "TRANSLATION"

    model: TransformerSettings = TransformerSettings()
    coe: TranslationExpertSettings = TranslationExpertSettings()
    training: TranslationTrainingSettings = TranslationTrainingSettings()
    search: BeamSearchSettings = BeamSearchSettings()
