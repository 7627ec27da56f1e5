"""A Transformer with one encoder and several whole decoders, of which one translates a sentence.

Collaboration of Experts, Section 4.4: the encoder's output at a constant token before the sentence
goes into the expert selector. With one decoder it is the plain Transformer: no such token, no
selector.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..settings.translation import TransformerSettings
from .parallel_text import with_select
from .vocabulary import PAD


class Encoded(NamedTuple):
    """What the encoder makes of N sentences.

    Attributes:
        memory: (N, S, D), what decoders attend to.
        padding: (N, S) bool, True where there is no token.
        selection: (N, n) logits of the decoders; None of one decoder.
    """

    memory: Tensor
    padding: Tensor
    selection: Tensor | None

    def experts(self) -> Tensor:
        """(N,) int64, the decoder of each sentence."""
        if self.selection is None:
            return self.memory.new_zeros(len(self.memory), dtype=torch.int64)
        return self.selection.argmax(1)


class ExpertTransformer(nn.Module):
    """Encoder, expert selector and decoders; embedding and softmax have one matrix together.

    Args:
        vocabulary: V, number of tokens.
        experts: n, number of decoders.
        settings: sizes.
        selector_trains_encoder: let the selector's gradient reach the encoder.
    """

    positions: Tensor

    def __init__(
        self,
        vocabulary: int,
        experts: int,
        settings: TransformerSettings,
        selector_trains_encoder: bool = False,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.selector_trains_encoder = selector_trains_encoder
        width = settings.width
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=PAD)
        self.dropout = nn.Dropout(settings.dropout)
        options: dict[str, Any] = {
            "d_model": width,
            "nhead": settings.heads,
            "dim_feedforward": settings.feedforward,
            "dropout": settings.dropout,
            "batch_first": True,
            "norm_first": settings.norm_first,
        }
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(**options),
            settings.encoder_layers,
            nn.LayerNorm(width) if settings.norm_first else None,
            enable_nested_tensor=False,
        )
        self.selector = nn.Linear(width, experts) if experts > 1 else None
        self.decoders = nn.ModuleList(
            nn.TransformerDecoder(
                nn.TransformerDecoderLayer(**options),
                settings.decoder_layers,
                nn.LayerNorm(width) if settings.norm_first else None,
            )
            for _ in range(experts)
        )
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1 and not name.startswith("embedding"):
                # Also of layers that torch copied from one another and so made alike.
                nn.init.xavier_uniform_(parameter)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        with torch.no_grad():
            self.embedding.weight[PAD].zero_()
        # The constant token, a sentence and its end.
        table = sinusoids(settings.max_tokens + 2, width)
        self.register_buffer("positions", table, persistent=False)

    def encode(self, source: Tensor) -> Encoded:
        """Look at sentences (N, S), END behind each, the constant token not before them."""
        if self.selector is not None:
            source = with_select(source)
        padding = source == PAD
        embedded = self.embed(source, self.embedding.weight)
        memory = self.encoder(embedded, src_key_padding_mask=padding)
        if self.selector is None:
            return Encoded(memory, padding, None)
        first = memory[:, 0]
        if not self.selector_trains_encoder:
            first = first.detach()
        return Encoded(memory, padding, self.selector(first))

    def embed(self, tokens: Tensor, weight: Tensor, start: int = 0) -> Tensor:
        """(N, T, D) of tokens (N, T), the first of which is at position ``start``.

        Args:
            tokens: numbers.
            weight: (V, D), the embedding's matrix or a view of it.
            start: position.
        """
        embedded = F.embedding(tokens, weight) * math.sqrt(self.settings.width)
        place = self.positions[start : start + tokens.shape[1]]
        return self.dropout(embedded + place.to(embedded.dtype))

    def decode(self, expert: int, given: Tensor, encoded: Encoded, weight: Tensor) -> Tensor:
        """(N, T, D) a decoder's features of what follows each token of (N, T).

        Args:
            expert: number of the decoder.
            given: BEGIN and the translations.
            encoded: of their sources.
            weight: as for :meth:`embed`.
        """
        steps = given.shape[1]
        later = torch.ones(steps, steps, dtype=torch.bool, device=given.device).triu(1)
        return self.decoders[expert](
            self.embed(given, weight),
            encoded.memory,
            tgt_mask=later,
            memory_key_padding_mask=encoded.padding,
            tgt_is_causal=True,
        )

    def loaded_parameters(self) -> int:
        """Numbers that a sentence needs: all but the other decoders' (the paper's MAC, Table 5)."""
        decoder = sum(parameter.numel() for parameter in self.decoders[0].parameters())
        return self.total_parameters() - decoder * (len(self.decoders) - 1)

    def total_parameters(self) -> int:
        """All numbers; the matrix of embedding and softmax counts once."""
        return sum(parameter.numel() for parameter in self.parameters())


def sinusoids(length: int, width: int) -> Tensor:
    """(length, width) float32 of positions, sines and cosines in turn ("Attention ...", 3.5)."""
    place = torch.arange(length, dtype=torch.float64)[:, None]
    rate = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = place * rate
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1).float()
