"""The model: filling, sizes, what it shares, and going on token by token."""

import math

import pytest
import torch
from tiny_translation import TINY, model

from divdr.errors import ConfigError
from divdr.settings.translation import TransformerSettings
from divdr.translation import (
    Batch,
    DecoderState,
    Encoded,
    ExpertTransformer,
    TokenPair,
    padded,
    sinusoids,
)
from divdr.translation.vocabulary import END, PAD, SELECT

SHORT, LONG = [7, 9, 11], [8, 8, 21, 15, 6, 29, 12, 13, 10]


@pytest.mark.parametrize("experts", [1, 3])
def test_filling_changes_nothing(experts):
    made = model(experts)
    weight = made.embedding.weight
    alone = made.encode(padded([[*SHORT, END]]))
    filled = made.encode(padded([[*LONG, END], [*SHORT, END]]))
    width = alone.memory.shape[1]
    torch.testing.assert_close(filled.memory[1:, :width], alone.memory)
    if experts > 1:
        torch.testing.assert_close(filled.selection[1:], alone.selection)
    given = Batch.of([TokenPair(LONG, LONG), TokenPair(SHORT, SHORT)]).given
    for expert in range(experts):
        together = made.decode(expert, given, filled, weight)
        apart = made.decode(expert, given[1:, : len(SHORT) + 1], alone, weight)
        torch.testing.assert_close(together[1:, : len(SHORT) + 1], apart)


def test_later_tokens_change_nothing_before_them():
    made = model()
    encoded = made.encode(padded([[*LONG, END]]))
    given = torch.tensor([[2, 5, 6, 7, 8]])
    other = torch.tensor([[2, 5, 6, 9, 20]])
    first, second = (made.decode(1, g, encoded, made.embedding.weight) for g in (given, other))
    torch.testing.assert_close(first[:, :3], second[:, :3])
    assert not torch.allclose(first[:, 3:], second[:, 3:])


def test_the_selector_sees_the_constant_token_alone():
    made = model(3)
    source = padded([[*SHORT, END]])
    encoded = made.encode(source)
    assert encoded.memory.shape[1] == len(SHORT) + 2
    expected = made.selector(encoded.memory[:, 0])
    torch.testing.assert_close(encoded.selection, expected)
    with torch.no_grad():
        made.embedding.weight[SELECT] += 1
    assert not torch.allclose(made.encode(source).selection, expected)
    assert model(1).encode(source).memory.shape[1] == len(SHORT) + 1  # a plain model has none


def test_parameters_by_hand():
    width, hidden, tokens = TINY.width, TINY.feedforward, 30
    attention = 4 * width * width + 4 * width
    rest = 2 * width * hidden + hidden + width
    decoder = 2 * (2 * attention + rest + 3 * 2 * width)
    shared = tokens * width + attention + rest + 2 * 2 * width
    for experts in (1, 4):
        selector = 0 if experts == 1 else experts * (width + 1)
        made = ExpertTransformer(tokens, experts, TINY)
        assert made.total_parameters() == shared + selector + experts * decoder
        assert made.loaded_parameters() == shared + selector + decoder


def test_the_papers_sizes():
    """Table 5 prints 62.4 M loaded and 138.2 M in all, for a vocabulary of about 37,000 tokens."""
    with torch.device("meta"):
        base = ExpertTransformer(37000, 1, TransformerSettings())
        four = ExpertTransformer(37000, 4, TransformerSettings())
    assert base.loaded_parameters() == pytest.approx(62.4e6, rel=0.02)
    assert four.total_parameters() == pytest.approx(138.2e6, rel=0.02)
    assert four.loaded_parameters() - base.loaded_parameters() == 4 * 513


def test_positions_by_hand():
    table = sinusoids(20, 6)
    for place in (0, 1, 13):
        for pair, rate in enumerate((1, 10000 ** (-2 / 6), 10000 ** (-4 / 6))):
            assert float(table[place, 2 * pair]) == pytest.approx(math.sin(place * rate), abs=1e-6)
            assert float(table[place, 2 * pair + 1]) == pytest.approx(math.cos(place * rate))


def test_embedding_by_hand():
    made = model(1)
    weight = made.embedding.weight
    found = made.embed(torch.tensor([[7, 9]]), weight, start=4)
    expected = 4 * weight[[7, 9]] + sinusoids(6, 16)[4:]  # √16 is 4
    torch.testing.assert_close(found[0], expected)


def test_how_weights_start():
    made = ExpertTransformer(4000, 1, TINY)
    assert float(made.embedding.weight.detach()[5:].std()) == pytest.approx(16**-0.5, rel=0.02)
    assert not made.embedding.weight[PAD].any()
    bound = math.sqrt(6 / (TINY.width + TINY.feedforward))  # Xavier's
    largest = float(made.decoders[0].layers[1].linear1.weight.detach().abs().max())
    assert 0.9 * bound < largest <= bound


def test_decoders_start_unlike():
    made = ExpertTransformer(30, 2, TINY)
    layers = [d.layers[number].linear1.weight for d in made.decoders for number in (0, 1)]
    for number, layer in enumerate(layers):
        assert not any(torch.equal(layer, other) for other in layers[:number])


@pytest.mark.parametrize("norm_first", [False, True])
def test_token_by_token_is_the_whole_decoder(norm_first):
    torch.manual_seed(1)
    changed = TransformerSettings(**(vars(TINY) | {"norm_first": norm_first, "heads": 4}))
    made = ExpertTransformer(30, 2, changed).eval()
    weight = made.embedding.weight
    encoded = made.encode(padded([[*SHORT, END], [*LONG, END], [5, END]]))
    beam, steps = 2, 5
    tokens = torch.randint(5, 30, (3, beam, steps))
    state = DecoderState(made, 1, encoded, beam)
    with torch.no_grad():
        found = [state.advance(tokens[:, :, step]) for step in range(3)]
        # The sentences' translations change places, and the second sentence is done.
        swapped = torch.tensor([[1, 0], [0, 0], [1, 1]])
        state.reorder(swapped)
        tokens = tokens.gather(1, swapped[:, :, None].expand(-1, -1, steps))
        rows = torch.tensor([0, 2])
        state.keep(rows)
        later = [state.advance(tokens[rows, :, step]) for step in range(3, steps)]
        for place in range(beam):
            whole = made.decode(1, tokens[:, place], encoded, weight) @ weight.T
            expected = whole.log_softmax(2)
            for step, part in enumerate(later, 3):
                torch.testing.assert_close(part[:, place], expected[rows, step])
        # Before they changed places, too.
        third = Encoded(encoded.memory[2:], encoded.padding[2:], None)
        whole = made.decode(1, tokens[2:, 0, :3], third, weight) @ weight.T
        torch.testing.assert_close(found[2][2:, 1], whole.log_softmax(2)[:, 2])


def test_width_must_suit_the_heads():
    with pytest.raises(ConfigError, match=r"WIDTH must be even and a multiple of the 3 HEADS"):
        TransformerSettings(width=16, heads=3)
    with pytest.raises(ConfigError, match=r"TRANSLATION\.MODEL\.DROPOUT must be"):
        TransformerSettings(dropout=1.0)
    assert PAD == 0  # what fills tensors
