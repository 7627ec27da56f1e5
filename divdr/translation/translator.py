"""Translating text: each sentence by the decoder that the selector chose, in groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..moe.choice import one_hot_choice
from ..moe.expert_dispatch import run_groups
from ..settings.translation import BeamSearchSettings
from .beam_search import beam_search
from .expert_transformer import Encoded, ExpertTransformer
from .incremental import DecoderState
from .parallel_text import check_length, padded
from .vocabulary import END, PAD, Vocabulary


class Translated(NamedTuple):
    """A sentence's translation.

    Attributes:
        text: without special tokens.
        expert: number of the decoder that made it.
    """

    text: str
    expert: int


class GroupDecoder(nn.Module):
    """One decoder and the sentences of a batch; runs on those that chose it.

    Args:
        model: in evaluation.
        expert: number of its decoder.
        encoded: of all N sentences of the batch.
        limits: (N,) int64, tokens that each translation may have.
        settings: of the search.
    """

    def __init__(
        self,
        model: ExpertTransformer,
        expert: int,
        encoded: Encoded,
        limits: Tensor,
        settings: BeamSearchSettings,
    ) -> None:
        super().__init__()
        self._model = model
        self._expert = expert
        self._encoded = encoded
        self._limits = limits
        self._settings = settings

    def forward(self, rows: Tensor) -> Tensor:
        """(R, T) int64 translations of the sentences (R,), PAD behind them."""
        width = int((~self._encoded.padding[rows]).sum(1).max())
        part = Encoded(
            self._encoded.memory[rows, :width], self._encoded.padding[rows, :width], None
        )
        settings = self._settings
        state = DecoderState(self._model, self._expert, part, settings.beam)
        found = beam_search(state, self._limits[rows], settings.beam, settings.length_penalty)
        return padded([each.tokens for each in found]).to(rows.device, torch.int64)


class Translator:
    """A trained model, its vocabulary, and how it searches.

    Args:
        model: is put into evaluation.
        vocabulary: that it was trained with.
        settings: of the search; they can be changed at any time.
    """

    def __init__(
        self,
        model: ExpertTransformer,
        vocabulary: Vocabulary,
        settings: BeamSearchSettings | None = None,
    ) -> None:
        self.model = model.eval()
        self.vocabulary = vocabulary
        self.settings = settings or BeamSearchSettings()

    @torch.no_grad()
    def translate(
        self, lines: Sequence[str], expert: int | None = None, what: str = "the text"
    ) -> list[Translated]:
        """Translations, in the order of the lines; a line does not depend on the others.

        Args:
            lines: a sentence each.
            expert: this decoder for all of them, in place of the selector's choice.
            what: names the lines in errors.

        Raises:
            DataError: a line has more tokens than the model takes.
        """
        limit = self.model.settings.max_tokens
        sources = [self.vocabulary.encode(line) for line in lines]
        for number, source in enumerate(sources, 1):
            check_length(source, limit, f"line {number} of {what}")
        # Sentences of like length stand together, so that little is filling.
        order = sorted(range(len(sources)), key=lambda number: len(sources[number]))
        found: list[Translated | None] = [None] * len(sources)
        size = self.settings.batch_sentences
        for start in range(0, len(order), size):
            numbers = order[start : start + size]
            batch = self._batch([sources[number] for number in numbers], expert)
            for number, translated in zip(numbers, batch, strict=True):
                found[number] = translated
        return [each for each in found if each is not None]

    def _batch(self, sources: Sequence[Sequence[int]], expert: int | None) -> list[Translated]:
        model, device = self.model, self.model.embedding.weight.device
        encoded = model.encode(padded([[*source, END] for source in sources]).to(device))
        chosen = encoded.experts()
        if expert is not None:
            chosen = torch.full_like(chosen, expert)
        longest = model.settings.max_tokens
        lengths = [min(longest, len(s) + self.settings.extra_tokens) for s in sources]
        limits = torch.tensor(lengths, device=device)
        count = len(model.decoders)
        decoders = [
            GroupDecoder(model, number, encoded, limits, self.settings) for number in range(count)
        ]
        rows = torch.arange(len(sources), device=device)
        texts = [""] * len(sources)
        for group in run_groups(decoders, rows, one_hot_choice(chosen, count)):
            for row, tokens in zip(group.rows.tolist(), group.output.tolist(), strict=True):
                texts[row] = self.vocabulary.decode([token for token in tokens if token != PAD])
        return [Translated(*each) for each in zip(texts, chosen.tolist(), strict=True)]
