"""Text files, batches and the vocabulary."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_translation import text

from divdr.errors import ConfigError, DataError, DivdrError
from divdr.translation import (
    Batch,
    ParallelText,
    TokenPair,
    Vocabulary,
    corpus_bleu,
    encode_pairs,
    epoch_batches,
    read_lines,
)
from divdr.translation.vocabulary import BEGIN, END, PAD, SELECT

WORDS = [*text(32).source, *text(32).target]


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.learn(WORDS, 120)


def write(folder, english, german, split="train"):
    (folder / f"{split}.en").write_bytes(english)
    (folder / f"{split}.de").write_bytes(german)


def test_files_are_read(tmp_path):
    # A line separator within a line, and ends of Windows.
    write(tmp_path, "one\u2028two\nthree\n".encode(), b"eins zwei\r\ndrei\r\n")
    read = ParallelText.read(tmp_path, "train")
    assert read.source == ["one\u2028two", "three"]
    assert read.target == ["eins zwei", "drei"]
    other = ParallelText.read(tmp_path, "train", ("de", "en"))
    assert other.source == read.target


@pytest.mark.parametrize(
    ("english", "german", "message"),
    [
        (b"a\nb\n", b"a\n", r"train\.en has 2 lines and .*train\.de 1: line by line they must be"),
        (b"", b"a\n", r"train\.en is empty"),
        (b"a\n", b"\n \n", r"train\.de is empty"),
        (b"a\n\nb\n", b"a\nb\nc\n", r"line 2 of .*train\.en has no words"),
        (b"a\n", b"\xff\xfe\n", r"train\.de is no UTF-8 text"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, english, german, message):
    write(tmp_path, english, german)
    with pytest.raises(DataError, match=message):
        ParallelText.read(tmp_path, "train")
    with pytest.raises(DataError, match=r"text file .*other\.en does not exist"):
        ParallelText.read(tmp_path, "other")


def test_vocabulary_gives_the_text_back(vocabulary):
    assert len(vocabulary) == 120
    for line in WORDS:
        tokens = vocabulary.encode(line)
        assert min(tokens) > SELECT  # text holds no special token
        assert vocabulary.decode([*tokens, PAD, PAD]) == line
    signs = ["a … ½ ﬁ", "b „x“ …"] * 4  # which Unicode has other forms of
    assert [(own := Vocabulary.learn(signs, 20)).decode(own.encode(s)) for s in signs] == signs
    assert Vocabulary(vocabulary.model).encode(WORDS[0]) == vocabulary.encode(WORDS[0])
    assert Vocabulary.learn(WORDS, 120).model == vocabulary.model


def test_special_tokens_typed_as_text_stay_text(vocabulary):
    assert not {BEGIN, END, PAD, SELECT} & set(vocabulary.encode("<s> a </s> <pad> <select>"))


@pytest.mark.parametrize(
    ("lines", "size", "error", "message"),
    [
        (WORDS, 5000, ConfigError, r"VOCABULARY 5000 is too large for this text, which gives at"),
        (WORDS, 12, ConfigError, "VOCABULARY 12 is too small for the letters of this text"),
        ([], 50, DataError, "there is no text to learn a vocabulary from"),
        (["", "  "], 50, DataError, "there is no text to learn a vocabulary from"),
    ],
)
def test_vocabularies_that_cannot_be(lines, size, error, message):
    with pytest.raises(error, match=message):
        Vocabulary.learn(lines, size)


def test_what_is_no_vocabulary_is_told():
    with pytest.raises(DataError, match="the vocabulary is no SentencePiece model"):
        Vocabulary(b"nothing")


def test_a_line_longer_than_the_positions_is_named(vocabulary):
    pairs = ParallelText(["forty-two", "two " * 30], ["zwei", "zwei"], ("a.en", "a.de"))
    with pytest.raises(DataError, match=r"^line 2 of a\.en has \d+ tokens; MAX_TOKENS is 20$"):
        encode_pairs(pairs, vocabulary, 20)
    assert len(encode_pairs(pairs, vocabulary, 20, longest=10)) == 1
    with pytest.raises(DataError, match=r"every pair of a\.en has more than 1 tokens"):
        encode_pairs(pairs, vocabulary, 20, longest=1)


def test_a_batch_by_hand():
    batch = Batch.of([TokenPair([7], [8, 9]), TokenPair([10, 11], [12])])
    assert batch.source.tolist() == [[7, END, PAD], [10, 11, END]]
    assert batch.given.tolist() == [[BEGIN, 8, 9], [BEGIN, 12, PAD]]
    assert batch.wanted.tolist() == [[8, 9, END], [12, END, PAD]]


LENGTHS = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=60)


@given(LENGTHS, st.integers(13, 80), st.integers(0, 3), st.integers(0, 3))
def test_every_epoch_has_each_pair_once_in_batches_that_fit(sizes, limit, seed, epoch):
    pairs = [TokenPair([5] * a, [5] * b) for a, b in sizes]
    batches = list(epoch_batches(pairs, limit, seed, epoch))
    assert sorted(number for batch in batches for number in batch) == list(range(len(pairs)))
    for batch in batches:
        made = Batch.of([pairs[number] for number in batch])
        assert max(made.source.numel(), made.wanted.numel()) <= limit
    assert batches == list(epoch_batches(pairs, limit, seed, epoch))


def test_epochs_and_seeds_differ_and_fill_up_little():
    pairs = [TokenPair([5] * (1 + n % 17), [5] * (1 + n % 13)) for n in range(400)]
    plans = [list(epoch_batches(pairs, 150, *place)) for place in ((0, 0), (0, 1), (1, 0))]
    assert plans[0] != plans[1] != plans[2] != plans[0]
    real = sum(pair.longest + 1 for pair in pairs)
    held = sum(max(pairs[n].longest + 1 for n in batch) * len(batch) for batch in plans[0])
    assert held < 1.1 * real
    with pytest.raises(ConfigError, match="BATCH_TOKENS 10 cannot hold a sentence of 18 tokens"):
        next(epoch_batches(pairs, 10, 0, 0))


@pytest.mark.parametrize(
    ("library", "call"),
    [
        ("sentencepiece", lambda: Vocabulary.learn(WORDS, 120)),
        ("sacrebleu.metrics", lambda: corpus_bleu(["a"], ["a"])),
    ],
)
def test_a_missing_library_is_told_in_one_sentence(monkeypatch, library, call):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(DivdrError, match=r"is not installed: pip install 'divdr\[translation\]'$"):
        call()


def test_lines_of_a_file(tmp_path):
    (tmp_path / "x").write_text("a\nb")
    assert read_lines(tmp_path / "x") == ["a", "b"]
