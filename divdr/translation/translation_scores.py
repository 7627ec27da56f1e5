"""How good a translation model is: BLEU by sacreBLEU, and what each decoder did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ..errors import DataError, DivdrError
from .parallel_text import Batch, ParallelText, TokenPair
from .translation_losses import sentence_scores
from .translator import Translator


class Bleu(NamedTuple):
    """A corpus's score.

    Attributes:
        score: BLEU, 0 to 100.
        signature: how it was counted, as sacreBLEU words it.
    """

    score: float
    signature: str


def corpus_bleu(translations: Sequence[str], references: Sequence[str]) -> Bleu:
    """BLEU of plain text; sacreBLEU cuts it into words itself (its tokenizer "13a").

    Args:
        translations: a sentence each.
        references: as many.

    Raises:
        DataError: there are none, or not as many references.
        DivdrError: sacreBLEU is not installed.
    """
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise DivdrError(
            "BLEU needs sacreBLEU, which is not installed: pip install 'divdr[translation]'"
        ) from None
    if not translations or len(translations) != len(references):
        raise DataError(
            f"{len(translations)} translations cannot be compared with {len(references)} references"
        )
    metric = BLEU()
    score = metric.corpus_score(list(translations), [list(references)])
    return Bleu(float(score.score), str(metric.get_signature()))


class Evaluation(NamedTuple):
    """What a model made of a text.

    Attributes:
        translations: of its sentences.
        bleu: their score.
        shares: per decoder, of the sentences that it translated.
    """

    translations: list[str]
    bleu: Bleu
    shares: list[float]


def evaluate(translator: Translator, text: ParallelText, expert: int | None = None) -> Evaluation:
    """Translate a text and score it.

    Args:
        translator: a trained model and its search.
        text: sentences and references.
        expert: this decoder for all sentences, in place of the selector's choice.
    """
    found = translator.translate(text.source, expert, text.files[0])
    count = len(translator.model.decoders)
    shares = [sum(each.expert == n for each in found) / len(found) for n in range(count)]
    translations = [each.text for each in found]
    return Evaluation(translations, corpus_bleu(translations, text.target), shares)


class SelectionQuality(NamedTuple):
    """How well the selector chooses, on true class probabilities of given translations.

    Attributes:
        chosen: mean TCP of the decoders that it chose.
        best: of each sentence's best decoder.
        mean: over all decoders, which is what chance gives.
        right: share of the sentences whose best decoder it chose.
    """

    chosen: float
    best: float
    mean: float
    right: float


@torch.no_grad()
def selection_quality(
    translator: Translator, pairs: Sequence[TokenPair], batch_sentences: int = 64
) -> SelectionQuality:
    """Compare the selector's choice with the best one, sentence by sentence.

    Args:
        translator: a trained model.
        pairs: sentences and references.
        batch_sentences: that are looked at together.
    """
    model = translator.model.eval()
    weight = model.embedding.weight
    sums: Any = torch.zeros(4, dtype=torch.float64)
    for start in range(0, len(pairs), batch_sentences):
        batch = Batch.of(pairs[start : start + batch_sentences]).to(weight.device)
        encoded = model.encode(batch.source)
        tcp = torch.stack(
            [
                sentence_scores(
                    model.decode(number, batch.given, encoded, weight), batch.wanted, weight, 0.0
                ).tcp
                for number in range(len(model.decoders))
            ],
            dim=1,
        ).double()
        chosen = encoded.experts()
        best, place = tcp.max(1)
        parts = (tcp.gather(1, chosen[:, None])[:, 0], best, tcp.mean(1), chosen == place)
        sums += torch.stack([part.double().sum().cpu() for part in parts])
    return SelectionQuality(*(sums / len(pairs)).tolist())
