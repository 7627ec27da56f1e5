"""The vocabulary that both languages share: byte-pair encoding by SentencePiece.

SentencePiece keeps spaces as symbols of their own, so that tokens give back the plain text that
BLEU is counted on, and its whole model is a string of bytes, which a checkpoint holds.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from types import ModuleType

from ..errors import ConfigError, DataError, DivdrError

PAD, UNKNOWN, BEGIN, END, SELECT = range(5)
"""Tokens that stand in no text: filling, what is not in the vocabulary, begin and end of a
translation, and the constant token before a source sentence whose encoding selects a decoder."""
NEVER_GENERATED = (PAD, UNKNOWN, BEGIN, SELECT)
_SELECT_NAME = "<select>"


class Vocabulary:
    """Text to numbers and back.

    Args:
        model: SentencePiece's, as :meth:`learn` makes it.

    Attributes:
        model: the same.

    Raises:
        DataError: the bytes are no such model, or of other special tokens.
        DivdrError: SentencePiece is not installed.
    """

    def __init__(self, model: bytes) -> None:
        library = _sentencepiece()
        self._processor = library.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError:
            raise DataError("the vocabulary is no SentencePiece model") from None
        if self._processor.PieceToId(_SELECT_NAME) != SELECT:
            raise DataError(f"the vocabulary lacks {_SELECT_NAME}: it was not made here")
        self.model = model

    @classmethod
    def learn(cls, lines: Iterable[str], size: int) -> Vocabulary:
        """Learn it from text; the same text gives the same one.

        Args:
            lines: of both languages.
            size: number of tokens, special ones included.

        Raises:
            ConfigError: the text is too small for so many tokens, or has too many letters for so
                few.
            DataError: there is no text.
        """
        library, out = _sentencepiece(), io.BytesIO()
        given = (line for line in lines if line.strip())
        first = next(given, None)
        if first is None:
            raise DataError("there is no text to learn a vocabulary from")
        try:
            library.SentencePieceTrainer.Train(
                sentence_iterator=chain([first], given),
                model_writer=out,
                model_type="bpe",
                vocab_size=size,
                normalization_rule_name="identity",  # text comes back as it was
                character_coverage=0.9999,  # SentencePiece's own 0.9995 leaves out even "!"
                pad_id=PAD,
                unk_id=UNKNOWN,
                bos_id=BEGIN,
                eos_id=END,
                control_symbols=[_SELECT_NAME],
                num_threads=1,
                minloglevel=2,
            )
        except (RuntimeError, OSError) as error:
            raise ConfigError(_reason(str(error), size)) from None
        return cls(out.getvalue())

    def __len__(self) -> int:
        return int(self._processor.GetPieceSize())

    def encode(self, text: str) -> list[int]:
        """A sentence's tokens, without special ones before or behind them."""
        return list(self._processor.EncodeAsIds(text))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; special ones have none."""
        return str(self._processor.DecodeIds([t for t in tokens if t not in (PAD, SELECT)]))


def _reason(said: str, size: int) -> str:
    """Why no vocabulary of a size could be learned, from SentencePiece's words."""
    limit = re.search(r"value <= (\d+)", said)
    if limit:
        return f"VOCABULARY {size} is too large for this text, which gives at most {limit[1]}"
    required = re.search(r"(\d+) vs (\d+)", said) or re.search(r"required_chars.*?(\d+)", said)
    if "smaller than" in said or required:
        return f"VOCABULARY {size} is too small for the letters of this text"
    words = " ".join(said.split())
    return f"no VOCABULARY of {size} tokens can be learned from this text ({words[-160:]})"


def _sentencepiece() -> ModuleType:
    try:
        import sentencepiece
    except ImportError:
        raise DivdrError(
            "translation needs SentencePiece, which is not installed: pip install "
            "'divdr[translation]'"
        ) from None
    return sentencepiece
