"""What decoders and expert selector learn from a batch of sentences.

The teaching is the one of images (``divdr.moe.teaching``): a sample is a sentence here, and its
true class probability the mean over its tokens (Collaboration of Experts, Section 4.4).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..moe.teaching import Lesson, teach
from ..settings.translation import TranslationExpertSettings
from .expert_transformer import ExpertTransformer
from .parallel_text import Batch
from .vocabulary import PAD


class SentenceScores(NamedTuple):
    """What a decoder makes of N sentences.

    Attributes:
        loss: (N,) label-smoothed cross-entropy, mean over the sentence's tokens.
        tcp: (N,) the true tokens' probability, mean over the sentence's tokens; detached.
    """

    loss: Tensor
    tcp: Tensor


def sentence_scores(
    features: Tensor, wanted: Tensor, weight: Tensor, label_smoothing: float
) -> SentenceScores:
    """Losses and true class probabilities of sentences; what is filled up counts nowhere.

    Args:
        features: (N, T, D), a decoder's.
        wanted: (N, T) int64, PAD behind each sentence's end.
        weight: (V, D), the softmax's matrix.
        label_smoothing: ε: the loss is (1 − ε) times that of the true token and ε times the mean
            over all V tokens.
    """
    real = wanted != PAD
    # The softmax is most of the work: it runs where there are tokens alone, and the only matrix of
    # tokens × V is the logits. Both means of logits are products with the features instead.
    found, target = features[real], wanted[real]
    total = F.linear(found, weight).float().logsumexp(1)
    true = (found * weight[target]).sum(1).float() - total
    mean_logit = (found @ weight.mean(0)).float()
    each = total - (1 - label_smoothing) * (true + total) - label_smoothing * mean_logit
    rows = real.nonzero()[:, 0]
    lengths = real.sum(1).to(each.dtype)

    def mean(values: Tensor) -> Tensor:
        return values.new_zeros(len(wanted)).index_add(0, rows, values) / lengths

    return SentenceScores(mean(each), mean(true.detach().exp()))


class TranslationLosses(NamedTuple):
    """Of a batch.

    Attributes:
        experts: of the decoders and what is under them; the selector's is not in it.
        selection: η times the expert selector's; None of one decoder.
        tcp: (N, n) of every decoder.
        lesson: what was taught; None of one decoder.
    """

    experts: Tensor
    selection: Tensor | None
    tcp: Tensor
    lesson: Lesson | None

    @property
    def total(self) -> Tensor:
        """What training makes small."""
        return self.experts if self.selection is None else self.experts + self.selection


def translation_losses(
    model: ExpertTransformer,
    batch: Batch,
    settings: TranslationExpertSettings,
    label_smoothing: float,
    progress: float,
) -> TranslationLosses:
    """All decoders on all sentences, weighted as the selector shares them out (Eq. 5 to 10).

    One decoder gets the mean over the sentences, which is what n of equal weights get each. What
    decoders share (encoder, embedding, softmax) gets the n-th part of their gradients: each
    sentence reaches it once a decoder, and would teach it n times as much as in a plain model.

    Args:
        model: n decoders.
        batch: N sentences; fewer than n decoders teach nothing.
        settings: α, η and the teaching's modules.
        label_smoothing: see :func:`sentence_scores`.
        progress: share of training that is over, for α.
    """
    experts = len(model.decoders)
    encoded = model.encode(batch.source)
    weight = _shared(model.embedding.weight, experts)
    seen = encoded._replace(memory=_shared(encoded.memory, experts))
    scores = [
        sentence_scores(
            model.decode(number, batch.given, seen, weight), batch.wanted, weight, label_smoothing
        )
        for number in range(experts)
    ]
    tcp = torch.stack([score.tcp for score in scores], dim=1)
    if encoded.selection is None:
        return TranslationLosses(scores[0].loss.mean(), None, tcp, None)
    probabilities = encoded.selection.detach().float().softmax(1)
    lesson = teach(tcp, probabilities, settings.alpha_at(progress), settings)
    losses = torch.stack([score.loss for score in scores], dim=1)
    each = F.cross_entropy(encoded.selection.float(), lesson.labels, reduction="none")
    return TranslationLosses(
        (lesson.expert_weights.to(losses.dtype) * losses).sum(),
        settings.selection_weight * (lesson.selection_weights.to(each.dtype) * each).sum(),
        tcp,
        lesson,
    )


def _shared(value: Tensor, experts: int) -> Tensor:
    """The same numbers, whose gradient is divided by the number of decoders."""
    view = value.view_as(value)
    if experts > 1 and view.requires_grad:
        view.register_hook(lambda gradient: gradient / experts)
    return view
