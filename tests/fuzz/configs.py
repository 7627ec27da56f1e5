"""Configuration files and ``KEY VALUE`` pairs that nobody would write, and what must come of them.

See ``tests/fuzz/run.py`` for as many as there is time for.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from hypothesis import strategies as st

from divdr.config import get_divdr_config
from divdr.engine import load_config
from divdr.errors import ConfigError

SECONDS = 5.0
"""Longest that reading one configuration may take; on a quiet machine it takes 0.02."""


@dataclass(frozen=True)
class Example:
    """A configuration.

    Attributes:
        content: of the yaml file; None: there is no file.
        pairs: of the command line.
    """

    content: bytes | None
    pairs: list[str] = field(default_factory=list)


def _leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield f"{prefix}{name}", value
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


KNOWN = dict(_leaves(get_divdr_config()))

_NUMBERS = st.one_of(
    st.integers(-3, 5),
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 1.0, 0.5, 10**400, 1e-300]),
)
_TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["", "1", "1e-4", "None", "[", "(1,", "{1: 2}", "cuda", "cpu", "nan", "\t", "~"]
    ),
    st.sampled_from(["-" * 3000 + "1", "[" * 300, "('a')", "{[]: 1}", "1" * 5000, "\0", "é" * 9]),
)
_SCALARS = st.one_of(st.none(), st.booleans(), _NUMBERS, _TEXTS, st.dates(), st.binary(max_size=9))
VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(_TEXTS, st.integers(), st.none()), inner, max_size=3),
    ),
    max_leaves=6,
)
"""What stands for a key, of any type that yaml has."""


@st.composite
def _settings(draw: st.DrawFn) -> dict[Any, Any]:
    """A nested dict of known keys, with values like the default or of any kind, or unknown keys."""
    tree: dict[Any, Any] = {}
    for _ in range(draw(st.integers(1, 4))):
        key = draw(st.sampled_from(sorted(KNOWN)))
        default = KNOWN[key]
        alike = VALUES if isinstance(default, CfgNode) else st.just(default)
        if isinstance(default, (int, float)) and not isinstance(default, bool):
            alike = _NUMBERS
        value = draw(st.one_of(alike, VALUES))
        *groups, name = key.split(".")
        if draw(st.integers(0, 9)) == 0:
            name = draw(st.one_of(_TEXTS, st.just(name.lower()), st.just("_BASE_")))
        node = tree
        for group in groups:
            below = node.setdefault(group, {})
            if not isinstance(below, dict):
                break
            node = below
        node[name] = value
    return tree


@st.composite
def examples(draw: st.DrawFn) -> Example:
    """An :class:`Example`: settings as yaml, the same cut or with something put in, or no yaml."""
    tree = draw(_settings())
    content = yaml.dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")
    kind = draw(st.sampled_from(["whole", "whole", "spoilt", "text", "bytes", "pairs"]))
    if kind == "spoilt":
        place = draw(st.integers(0, len(content)))
        extra = draw(
            st.sampled_from([b"\t", b":", b"[", b"{", b"&a *b", b"!!x ", b"\0", b"\xff", b""])
        )
        content = content[:place] + extra + content[place + draw(st.integers(0, 3)) :]
    elif kind == "text":
        content = draw(st.text(max_size=80)).encode("utf-8", "surrogatepass")
    elif kind == "bytes":
        content = draw(st.binary(max_size=80))
    pairs: list[str] = []
    if kind == "pairs" or draw(st.integers(0, 4)) == 0:
        for _ in range(draw(st.integers(1, 3))):
            key = draw(st.one_of(st.sampled_from(sorted(KNOWN)), st.text(max_size=12)))
            pairs += [key, draw(st.one_of(_TEXTS, VALUES.map(str)))]
        pairs = pairs[: len(pairs) - draw(st.integers(0, 1))]
    return Example(None if kind == "pairs" else content, pairs)


def check_one(example: Example, folder: Path) -> bool:
    """See that an example gives a configuration or one sentence, and soon.

    Args:
        example: of :func:`examples`.
        folder: where its file may be written.

    Returns:
        Whether it gave a configuration.

    Raises:
        AssertionError: the sentence has several lines, no cause or no file; or it took too long.
        Exception: any that is no ``ConfigError``.
    """
    path = folder / "drawn.yaml"
    if example.content is not None:
        path.write_bytes(example.content)
    started = time.perf_counter()
    try:
        cfg = load_config("" if example.content is None else str(path), example.pairs)
    except ConfigError as error:
        sentence = str(error)
        assert len(sentence.splitlines()) == 1, sentence
        assert len(sentence) < 600, sentence
        words = [str(path), *(word for word in example.pairs[::2] if word.strip())]
        named = any(word in sentence for word in words) or any(key in sentence for key in KNOWN)
        assert named or re.search(r"unknown configuration key \S|the key \S.* has no", sentence)
        return False
    finally:
        assert time.perf_counter() - started < SECONDS
    cfg.dump()  # what a training writes first
    return True
