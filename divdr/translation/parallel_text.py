"""Pairs of plain text files, a sentence a line, and batches of them by number of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from .vocabulary import BEGIN, END, PAD, SELECT, Vocabulary


@dataclass(frozen=True)
class ParallelText:
    """Sentences and their translations.

    Attributes:
        source, target: lines without their ends, as many of each.
        files: where they came from, for errors.
    """

    source: list[str]
    target: list[str]
    files: tuple[str, str] = ("source", "target")

    @classmethod
    def read(
        cls, folder: str | Path, split: str, languages: tuple[str, str] = ("en", "de")
    ) -> ParallelText:
        """The files ``split.SOURCE`` and ``split.TARGET`` of a folder.

        Raises:
            DataError: a file is missing, empty, or no UTF-8 text; they differ in length, or a line
                has no words.
        """
        paths = [Path(folder) / f"{split}.{language}" for language in languages]
        source, target = (read_lines(path) for path in paths)
        if len(source) != len(target):
            raise DataError(
                f"{paths[0]} has {len(source)} lines and {paths[1]} {len(target)}: line by line "
                "they must be each other's translations"
            )
        return cls(source, target, (str(paths[0]), str(paths[1])))

    def __len__(self) -> int:
        return len(self.source)


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file.

    Raises:
        DataError: it is missing, empty, or no UTF-8 text, or a line has no words.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"text file {path} does not exist")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{path} is no UTF-8 text") from None
    if not text.strip():
        raise DataError(f"{path} is empty")
    # Not splitlines(), which also cuts at signs that stand within lines.
    lines = [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")]
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise DataError(f"line {number} of {path} has no words")
    return lines


class TokenPair(NamedTuple):
    """The tokens of a sentence and of its translation, special ones not among them."""

    source: list[int]
    target: list[int]

    @property
    def longest(self) -> int:
        """Tokens of the longer one."""
        return max(len(self.source), len(self.target))


def encode_pairs(
    text: ParallelText, vocabulary: Vocabulary, max_tokens: int, longest: int = 0
) -> list[TokenPair]:
    """Tokens of all pairs, in their order.

    Args:
        text: sentences.
        vocabulary: of both languages.
        max_tokens: that the model takes.
        longest: pairs with more tokens of either language are left out; 0 leaves out none.

    Raises:
        DataError: a sentence has more than ``max_tokens``, or all pairs were left out.
    """
    pairs = []
    for number, lines in enumerate(zip(text.source, text.target, strict=True), 1):
        sides = [vocabulary.encode(line) for line in lines]
        if longest and max(map(len, sides)) > longest:
            continue
        for side, file in zip(sides, text.files, strict=True):
            check_length(side, max_tokens, f"line {number} of {file}")
        pairs.append(TokenPair(*sides))
    if not pairs:
        raise DataError(f"every pair of {text.files[0]} has more than {longest} tokens")
    return pairs


def check_length(tokens: Sequence[int], max_tokens: int, what: str) -> None:
    """See that a sentence has no more tokens than positions.

    Raises:
        DataError: it has; the sentence names ``what``.
    """
    if len(tokens) > max_tokens:
        raise DataError(f"{what} has {len(tokens)} tokens; MAX_TOKENS is {max_tokens}")


class Batch(NamedTuple):
    """N sentences, filled up with PAD to the longest.

    Attributes:
        source: (N, S) int64, END after each sentence.
        given: (N, T) int64, BEGIN and the translation: what the decoder sees.
        wanted: (N, T) int64, the translation and END: what it is to say.
    """

    source: Tensor
    given: Tensor
    wanted: Tensor

    @classmethod
    def of(cls, pairs: Sequence[TokenPair]) -> Batch:
        """A batch of pairs."""
        return cls(
            padded([[*pair.source, END] for pair in pairs]),
            padded([[BEGIN, *pair.target] for pair in pairs]),
            padded([[*pair.target, END] for pair in pairs]),
        )

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(*(part.to(device) for part in self))


def padded(sentences: Sequence[Sequence[int]]) -> Tensor:
    """(N, longest) int64, filled up with PAD behind each sentence."""
    width = max(len(sentence) for sentence in sentences)
    return torch.tensor([[*s, *[PAD] * (width - len(s))] for s in sentences])


def with_select(source: Tensor) -> Tensor:
    """(N, 1 + S) the constant token before each sentence (N, S)."""
    return torch.cat([source.new_full((len(source), 1), SELECT), source], dim=1)


def epoch_batches(
    pairs: Sequence[TokenPair], batch_tokens: int, seed: int, epoch: int
) -> Iterator[list[int]]:
    """Numbers of the pairs of every batch of an epoch; the same ones for the same seed and epoch.

    Sentences of like length stand together, so that little is filling.

    Args:
        pairs: training's.
        batch_tokens: largest product of a batch's sentences and its longest sentence, which counts
            one token more for its end.
        seed: of the run.
        epoch: its number.

    Raises:
        ConfigError: a sentence alone has more tokens.
    """
    lengths = np.array([pair.longest + 1 for pair in pairs])
    if lengths.max() > batch_tokens:
        raise ConfigError(
            f"BATCH_TOKENS {batch_tokens} cannot hold a sentence of {lengths.max()} tokens"
        )
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(pairs))
    order = order[np.argsort(lengths[order], kind="stable")]
    batches: list[list[int]] = [[]]
    for number in order.tolist():
        # Ascending, so that the newest is the longest.
        if (len(batches[-1]) + 1) * lengths[number] > batch_tokens:
            batches.append([])
        batches[-1].append(number)
    for place in random.permutation(len(batches)).tolist():
        yield batches[place]
