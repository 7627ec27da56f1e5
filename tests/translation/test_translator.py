"""Grouped decoding gives what one sentence at a time gives."""

import pytest
import torch
from tiny_translation import TINY, model, text

from divdr.errors import DataError
from divdr.settings.translation import BeamSearchSettings
from divdr.translation import (
    ExpertTransformer,
    Translator,
    Vocabulary,
    beam_search,
    padded,
)
from divdr.translation.incremental import DecoderState
from divdr.translation.vocabulary import END

VOCABULARY = Vocabulary.learn([*text(32).source, *text(32).target], 120)
LINES = [*text(14).source, "two", "She said it is twenty, or thirty, or forty-four or ninety-nine."]


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(3)
    made = ExpertTransformer(len(VOCABULARY), 3, TINY).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2).add_(0.1 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize("beam", [1, 4])
def test_groups_are_one_sentence_at_a_time(made, beam):
    settings = BeamSearchSettings(beam=beam, extra_tokens=12, batch_sentences=16)
    translator = Translator(made, VOCABULARY, settings)
    together = translator.translate(LINES)
    assert len({each.expert for each in together}) > 1
    assert len({each.text for each in together}) > len(LINES) / 2
    assert together == [translator.translate([line])[0] for line in LINES]
    for each, line in zip(together, LINES, strict=True):
        tokens = VOCABULARY.encode(line)
        encoded = made.encode(padded([[*tokens, END]]))
        assert each.expert == int(encoded.selection.argmax())
        limit = torch.tensor([min(40, len(tokens) + 12)])
        state = DecoderState(made, each.expert, encoded, beam)
        found = beam_search(state, limit, beam, settings.length_penalty)
        assert each.text == VOCABULARY.decode(found[0].tokens)
        assert len(found[0].tokens) <= int(limit)


def test_only_the_chosen_decoders_run(made, monkeypatch):
    ran = []
    original = DecoderState.__init__

    def counted(self, model, expert, encoded, beam):
        ran.append((expert, len(encoded.memory)))
        original(self, model, expert, encoded, beam)

    monkeypatch.setattr("divdr.translation.translator.DecoderState.__init__", counted)
    found = Translator(made, VOCABULARY, BeamSearchSettings(extra_tokens=3)).translate(LINES)
    counts = {k: sum(each.expert == k for each in found) for k in range(3)}
    assert sorted(ran) == [(k, count) for k, count in counts.items() if count]


def test_one_decoder_for_all(made):
    translator = Translator(made, VOCABULARY, BeamSearchSettings(extra_tokens=3))
    for number in range(3):
        assert {each.expert for each in translator.translate(LINES[:6], number)} == {number}
    plain = Translator(model(1), VOCABULARY, BeamSearchSettings(extra_tokens=3))
    with torch.no_grad():
        plain.model.embedding = torch.nn.Embedding(len(VOCABULARY), 16)
    assert {each.expert for each in plain.translate(LINES[:4])} == {0}


def test_a_line_that_is_too_long_is_named(made):
    translator = Translator(made, VOCABULARY)
    with pytest.raises(DataError, match=r"^line 2 of the text has \d+ tokens; MAX_TOKENS is 40$"):
        translator.translate(["two", "twenty-two " * 20])
    assert translator.translate([]) == []
