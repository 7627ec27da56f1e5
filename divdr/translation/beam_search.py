"""Beam search of many sentences at once, with the length penalty of Wu et al. (2016), Eq. 14."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .vocabulary import BEGIN, END, NEVER_GENERATED


class Steps(Protocol):
    """What the search goes on by: a decoder with B translations in work for each of N sentences."""

    def advance(self, tokens: Tensor) -> Tensor:
        """(N, B, V) log-probabilities of what follows, given the newest tokens (N, B)."""

    def reorder(self, parents: Tensor) -> None:
        """Go on from other translations in work: (N, B) number of each one's predecessor."""

    def keep(self, sentences: Tensor) -> None:
        """Go on with some of the sentences alone: (M,) their numbers."""


class Found(NamedTuple):
    """A translation.

    Attributes:
        tokens: without BEGIN and END.
        score: log-probability, END's included, divided by the length penalty.
    """

    tokens: list[int]
    score: float


def length_penalty(length: int, exponent: float) -> float:
    """What the log-probability of ``length`` tokens, END among them, is divided by."""
    return ((5 + length) / 6) ** exponent


@torch.no_grad()
def beam_search(state: Steps, limits: Tensor, beam: int, exponent: float) -> list[Found]:
    """The best translation that the search finds of each sentence.

    Of all continuations of a sentence's B translations in work the best 2B are looked at. Those of
    the first B that end are finished; the best B that do not end stay in work. A sentence is done
    when B translations are finished, or when none in work can become better than the best finished
    one: log-probabilities only fall, and no penalty is larger than that of the longest. With a beam
    of 1 this is greedy search.

    Args:
        state: where the decoder stands: before the first token.
        limits: (N,) int64, tokens that each translation may have, END not counted.
        beam: B.
        exponent: of the length penalty.

    Returns:
        N translations.
    """
    device = limits.device
    best = [Found([], -math.inf) for _ in range(len(limits))]
    finished = [0] * len(limits)
    open_ = torch.arange(len(limits), device=device)  # sentences that are not done
    newest = torch.full((len(limits), beam), BEGIN, device=device)
    texts = newest.new_zeros((len(limits), beam, 0))
    scores = torch.full((len(limits), beam), -math.inf, device=device)
    scores[:, 0] = 0  # the B are all alike: one of them counts
    longest = [length_penalty(limit + 1, exponent) for limit in limits.tolist()]
    step = 0
    while len(open_):
        step += 1
        following = state.advance(newest)
        tokens = following.shape[2]
        following[:, :, list(NEVER_GENERATED)] = -math.inf
        at_limit = limits[open_] < step
        if bool(at_limit.any()):
            ends = following[at_limit][:, :, END]
            following[at_limit] = -math.inf
            following[at_limit.nonzero()[:, 0], :, END] = ends
        total = (scores[:, :, None] + following).flatten(1)
        values, places = total.topk(min(2 * beam, total.shape[1]), dim=1)
        parents, chosen = places // tokens, places % tokens
        ending = (chosen == END) & (values > -math.inf)
        penalty = length_penalty(step, exponent)
        for row, rank in ending[:, :beam].nonzero().tolist():
            sentence = int(open_[row])
            finished[sentence] += 1
            score = float(values[row, rank]) / penalty
            if score > best[sentence].score:
                best[sentence] = Found(texts[row, parents[row, rank]].tolist(), score)
        # In the order of their values, those that end put behind.
        stay = (chosen == END).to(torch.int8).argsort(dim=1, stable=True)[:, :beam]
        parents, newest, scores = (part.gather(1, stay) for part in (parents, chosen, values))
        # All that follows for a beam wider than the vocabulary is impossible.
        if parents.shape[1] < beam:
            parents, newest, scores = _widened(parents, newest, scores, beam)
        texts = torch.cat([_taken(texts, parents), newest[:, :, None]], dim=2)
        state.reorder(parents)
        hopes = scores[:, 0].tolist()
        going = [
            finished[sentence] < beam and hope / longest[sentence] > best[sentence].score
            for sentence, hope in zip(open_.tolist(), hopes, strict=True)
        ]
        if not all(going):
            rows = torch.tensor(going, device=device).nonzero()[:, 0]
            open_, newest, texts, scores = (part[rows] for part in (open_, newest, texts, scores))
            state.keep(rows)
    return best


def _taken(texts: Tensor, parents: Tensor) -> Tensor:
    """(N, B, t) the texts of the predecessors (N, B)."""
    return texts.gather(1, parents[:, :, None].expand(-1, -1, texts.shape[2]))


def _widened(
    parents: Tensor, newest: Tensor, scores: Tensor, beam: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of B translations; the further ones are impossible."""
    rows, count = parents.shape
    missing = (rows, beam - count)
    return (
        torch.cat([parents, parents.new_zeros(missing)], dim=1),
        torch.cat([newest, newest.new_full(missing, BEGIN)], dim=1),
        torch.cat([scores, scores.new_full(missing, -math.inf)], dim=1),
    )
