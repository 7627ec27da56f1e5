"""Translation by Collaboration of Experts: one encoder, several decoders, one of them a sentence.

Needs the extra ``translation`` (SentencePiece and sacreBLEU), not Detectron2. Letters of axes:
N sentences, S and T tokens of source and target, D numbers a token, V tokens of the vocabulary,
n decoders, B translations in work.
"""

from .beam_search import Found, beam_search, length_penalty
from .expert_transformer import Encoded, ExpertTransformer, sinusoids
from .incremental import DecoderState
from .parallel_text import (
    Batch,
    ParallelText,
    TokenPair,
    encode_pairs,
    epoch_batches,
    padded,
    read_lines,
)
from .run_files import Trained, checkpoint_files, load_trained, mean_weights
from .translation_losses import (
    SentenceScores,
    TranslationLosses,
    sentence_scores,
    translation_losses,
)
from .translation_run import MODELS, TranslationRun, learning_rate, model_settings
from .translation_scores import (
    Bleu,
    Evaluation,
    SelectionQuality,
    corpus_bleu,
    evaluate,
    selection_quality,
)
from .translator import GroupDecoder, Translated, Translator
from .vocabulary import Vocabulary

__all__ = [
    "MODELS",
    "Batch",
    "Bleu",
    "DecoderState",
    "Encoded",
    "Evaluation",
    "ExpertTransformer",
    "Found",
    "GroupDecoder",
    "ParallelText",
    "SelectionQuality",
    "SentenceScores",
    "TokenPair",
    "Trained",
    "Translated",
    "TranslationLosses",
    "TranslationRun",
    "Translator",
    "Vocabulary",
    "beam_search",
    "checkpoint_files",
    "corpus_bleu",
    "encode_pairs",
    "epoch_batches",
    "evaluate",
    "learning_rate",
    "length_penalty",
    "load_trained",
    "mean_weights",
    "model_settings",
    "padded",
    "read_lines",
    "selection_quality",
    "sentence_scores",
    "sinusoids",
    "translation_losses",
]
