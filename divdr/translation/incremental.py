"""A decoder that goes on token by token and keeps what it knows of the tokens before.

:class:`torch.nn.TransformerDecoder` looks at a whole translation at once. Here its own layers run
for the newest token alone: keys and values of earlier tokens, and those of the source sentence, are
computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .expert_transformer import Encoded, ExpertTransformer


class DecoderState:
    """Where a decoder stands with the B translations in work of each of N sentences.

    Args:
        model: in evaluation.
        expert: number of its decoder.
        encoded: of the N sentences.
        beam: B.
    """

    def __init__(self, model: ExpertTransformer, expert: int, encoded: Encoded, beam: int) -> None:
        self._model = model
        decoder = cast(nn.TransformerDecoder, model.decoders[expert])
        self._layers = [cast(nn.TransformerDecoderLayer, layer) for layer in decoder.layers]
        self._norm = decoder.norm
        self._heads = model.settings.heads
        self._step = 0
        self._beam = beam
        # (N, 1, 1, S): attention's heads and queries look at the same tokens.
        self._visible = ~encoded.padding[:, None, None]
        self._source = [
            tuple(self._split(part) for part in _keys_and_values(attention, encoded.memory))
            for attention in (layer.multihead_attn for layer in self._layers)
        ]
        self._past: list[tuple[Tensor, Tensor]] = []

    def advance(self, tokens: Tensor) -> Tensor:
        """(N, B, V) log-probabilities of what follows, given the newest tokens (N, B)."""
        model, rows = self._model, tokens.shape
        weight = model.embedding.weight
        x = model.embed(tokens.reshape(-1, 1), weight, self._step)
        past = []
        for number, layer in enumerate(self._layers):
            x, kept = self._layer(layer, number, x)
            past.append(kept)
        self._past = past
        self._step += 1
        if self._norm is not None:
            x = self._norm(x)
        return F.linear(x[:, 0], weight).float().log_softmax(1).unflatten(0, rows)

    def reorder(self, parents: Tensor) -> None:
        """Go on from other translations in work: (N, B) number of each one's predecessor."""
        start = torch.arange(len(parents), device=parents.device)[:, None] * self._beam
        rows = (start + parents).flatten()
        self._past = [(key[rows], value[rows]) for key, value in self._past]

    def keep(self, sentences: Tensor) -> None:
        """Go on with some of the sentences alone: (M,) their numbers."""
        self._visible = self._visible[sentences]
        self._source = [(key[sentences], value[sentences]) for key, value in self._source]
        steps = torch.arange(self._beam, device=sentences.device)
        rows = (sentences[:, None] * self._beam + steps).flatten()
        self._past = [(key[rows], value[rows]) for key, value in self._past]

    def _layer(
        self, layer: nn.TransformerDecoderLayer, number: int, x: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(N·B, 1, D) through a layer, and its keys and values so far."""
        kept: tuple[Tensor, Tensor] | None = None

        def own(x: Tensor) -> Tensor:
            nonlocal kept
            attention = layer.self_attn
            query, key, value = map(self._split, _project(attention, x).chunk(3, dim=2))
            if self._past:
                earlier = self._past[number]
                key, value = torch.cat([earlier[0], key], 2), torch.cat([earlier[1], value], 2)
            kept = key, value
            mixed = F.scaled_dot_product_attention(query, key, value)
            return attention.out_proj(mixed.transpose(1, 2).flatten(2))

        def source(x: Tensor) -> Tensor:
            attention = layer.multihead_attn
            key, value = self._source[number]
            width = x.shape[2]
            query = F.linear(x, attention.in_proj_weight[:width], attention.in_proj_bias[:width])
            # A sentence's translations are queries to the same keys, which need no copies.
            query = self._split(query.reshape(-1, self._beam, width))
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=self._visible)
            return attention.out_proj(mixed.transpose(1, 2).reshape(-1, 1, width))

        def hidden(x: Tensor) -> Tensor:
            return layer.linear2(layer.activation(layer.linear1(x)))

        for norm, part in ((layer.norm1, own), (layer.norm2, source), (layer.norm3, hidden)):
            x = _residual(x, norm, part, layer.norm_first)
        assert kept is not None
        return x, kept

    def _split(self, x: Tensor) -> Tensor:
        """(R, T, D) to (R, heads, T, D / heads)."""
        return x.unflatten(2, (self._heads, -1)).transpose(1, 2)


def _residual(
    x: Tensor, norm: nn.Module, part: Callable[[Tensor], Tensor], norm_first: bool
) -> Tensor:
    return x + part(norm(x)) if norm_first else norm(x + part(x))


def _project(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """(R, T, 3 · D): query, key and value."""
    return F.linear(x, attention.in_proj_weight, attention.in_proj_bias)


def _keys_and_values(attention: nn.MultiheadAttention, memory: Tensor) -> tuple[Tensor, ...]:
    """Key and value (N, S, D) of what the encoder said."""
    width = memory.shape[2]
    both = F.linear(memory, attention.in_proj_weight[width:], attention.in_proj_bias[width:])
    return both.chunk(2, dim=2)
