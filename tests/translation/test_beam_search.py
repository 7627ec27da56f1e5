"""Beam search against search of every translation, and against a plain loop over one sentence."""

import itertools
import math

import pytest
import torch

from divdr.translation import beam_search, length_penalty
from divdr.translation.vocabulary import BEGIN, END, NEVER_GENERATED

WORDS = (5, 6, 7)
SIZE = 8


class Table:
    """Log-probabilities drawn at random for every beginning of every sentence's translation."""

    def __init__(self, sentences: int, beam: int, seed: int, sharp: float = 2.0) -> None:
        self.seed, self.sharp = seed, sharp
        self.names = list(range(sentences))
        self.texts = [[() for _ in range(beam)] for _ in range(sentences)]

    def row(self, name: int, text: tuple) -> torch.Tensor:
        generator = torch.Generator().manual_seed(hash((self.seed, name, text)) % 2**31)
        return (self.sharp * torch.randn(SIZE, generator=generator)).double().log_softmax(0)

    def advance(self, tokens):
        for texts, row in zip(self.texts, tokens.tolist(), strict=True):
            for place, token in enumerate(row):
                texts[place] = (*texts[place], token)
        return torch.stack(
            [
                torch.stack([self.row(name, text) for text in texts])
                for name, texts in zip(self.names, self.texts, strict=True)
            ]
        )

    def reorder(self, parents):
        self.texts = [
            [texts[parent] for parent in row]
            for texts, row in zip(self.texts, parents.tolist(), strict=True)
        ]

    def keep(self, sentences):
        self.names = [self.names[number] for number in sentences.tolist()]
        self.texts = [self.texts[number] for number in sentences.tolist()]


def score(table: Table, name: int, words: tuple, exponent: float) -> float:
    text, total = (BEGIN,), 0.0
    for word in (*words, END):
        total += float(table.row(name, text)[word])
        text = (*text, word)
    return total / ((5 + len(words) + 1) / 6) ** exponent


def best_of_all(table: Table, name: int, limit: int, exponent: float) -> tuple:
    every = (w for length in range(limit + 1) for w in itertools.product(WORDS, repeat=length))
    return max(every, key=lambda words: score(table, name, words, exponent))


def plain_beam(table: Table, name: int, limit: int, beam: int, exponent: float) -> tuple:
    """The same rules for one sentence, with lists."""
    work, done = [((BEGIN,), 0.0)], []
    for step in range(1, limit + 2):
        following = []
        for text, total in work:
            for word in (END, *WORDS) if step <= limit else (END,):
                following.append((total + float(table.row(name, text)[word]), (*text, word)))
        following.sort(reverse=True)
        for total, text in following[:beam]:
            if text[-1] == END:
                done.append((total / ((5 + step) / 6) ** exponent, text[1:-1]))
        work = [(text, total) for total, text in following if text[-1] != END][:beam]
        if len(done) >= beam:
            break
    return max(done)[1]


@pytest.mark.parametrize("exponent", [0.0, 0.6, 2.0])
def test_a_wide_beam_finds_the_best_of_all(exponent):
    limits = torch.tensor([3, 0, 2, 4, 3, 4])
    beam = len(WORDS) ** 4 * 2  # no translation of up to four words is lost
    for seed in range(3):
        found = beam_search(Table(6, beam, seed), limits, beam, exponent)
        table = Table(6, beam, seed)
        for name, (limit, each) in enumerate(zip(limits.tolist(), found, strict=True)):
            expected = best_of_all(table, name, limit, exponent)
            assert tuple(each.tokens) == expected
            assert each.score == pytest.approx(score(table, name, expected, exponent), rel=1e-5)


@pytest.mark.parametrize(("beam", "exponent"), [(1, 0.6), (2, 0.0), (4, 0.6), (4, 1.5)])
def test_batches_are_what_a_loop_over_one_sentence_finds(beam, exponent):
    limits = torch.tensor([6, 9, 0, 3, 9, 7, 8, 2])
    unlike = 0
    for seed in range(6):
        found = beam_search(Table(8, beam, seed, 1.0), limits, beam, exponent)
        table = Table(8, beam, seed, 1.0)
        for name, (limit, each) in enumerate(zip(limits.tolist(), found, strict=True)):
            assert tuple(each.tokens) == plain_beam(table, name, limit, beam, exponent)
            unlike += tuple(each.tokens) != plain_beam(table, name, limit, 1, exponent)
    assert unlike or beam == 1  # the beam matters here


def test_a_beam_of_one_takes_the_most_probable_token_each_time():
    table = Table(4, 1, 3)
    found = beam_search(table, torch.full((4,), 6), 1, 0.6)
    table = Table(4, 1, 3)
    for name, each in enumerate(found):
        text = (BEGIN,)
        while len(text) < 8:
            row = table.row(name, text)
            word = max((END, *WORDS) if len(text) < 7 else (END,), key=lambda w: float(row[w]))
            text = (*text, word)
            if word == END:
                break
        assert each.tokens == list(text[1:-1])


def test_what_is_no_word_is_never_said():
    found = beam_search(Table(5, 3, 0, 0.1), torch.full((5,), 12), 3, 3.0)
    said = {token for each in found for token in each.tokens}
    assert said
    assert not said & {*NEVER_GENERATED, END}


def test_length_penalty_by_hand():
    assert length_penalty(1, 0.6) == 1
    assert length_penalty(7, 0.6) == pytest.approx(2**0.6)
    assert length_penalty(50, 0.0) == 1
    assert math.isclose(length_penalty(13, 2.0), 9.0)
