"""Checkpoint files as they come: of any wrapper, prefix and format; cut, flipped, something else.

See ``tests/fuzz/run.py`` for as many as there is time for.
"""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from divdr.checkpoint.fit import PREFIXES, WRAPPERS
from divdr.engine import RoutingCheckpointer
from divdr.errors import CheckpointError

SECONDS = 60.0  # far more than any file needs on a busy machine; nothing may hang


@dataclass(frozen=True)
class Case:
    """A file.

    Attributes:
        form: "zip", "legacy" (both of ``torch.save``) or "pickle" (of arrays).
        wrappers: keys that lead to the weights.
        prefix: before every name.
        beside: more keys beside the outermost of the wrappers.
        damage: ("none",), ("cut", share), ("flip", ((share, bit), ...)), ("append", bytes),
            or ("replace", bytes), where a share from 0 to 1 is a place in the file.
    """

    form: str
    wrappers: tuple[str, ...]
    prefix: str
    beside: Mapping[str, int]
    damage: tuple[Any, ...]

    @property
    def known(self) -> bool:
        """Whether the weights are where a reader looks for them."""
        rest = self.prefix
        while (start := next((p for p in PREFIXES if rest.startswith(p)), None)) is not None:
            rest = rest[len(start) :]
        return rest == "" and all(key in WRAPPERS for key in self.wrappers)


class Small(nn.Module):
    """Two layers and statistics, with values that the seed draws."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for value in self.state_dict().values():
                if value.is_floating_point():
                    value.copy_(torch.rand(value.shape, generator=generator))


def examples() -> st.SearchStrategy[Case]:
    """All kinds of files, sound ones among them."""
    place = st.floats(0, 1, exclude_max=True)
    damage = st.one_of(
        st.just(("none",)),
        st.tuples(st.just("cut"), place),
        st.tuples(
            st.just("flip"),
            st.lists(st.tuples(place, st.integers(0, 7)), min_size=1, max_size=3).map(tuple),
        ),
        st.tuples(st.just("append"), st.binary(min_size=1, max_size=40)),
        st.tuples(st.just("replace"), st.one_of(st.binary(max_size=200), _texts(), _pictures())),
    )
    return st.builds(
        Case,
        st.sampled_from(("zip", "zip", "legacy", "pickle")),
        st.lists(st.sampled_from((*WRAPPERS, "somewhere")), max_size=3).map(tuple),
        st.lists(st.sampled_from((*PREFIXES, "branch.")), max_size=3).map("".join),
        st.dictionaries(st.text(max_size=8), st.integers(-9, 9), max_size=2),
        damage,
    )


def check_one(case: Case, folder: Path) -> bool:
    """Read the file: the weights come out as they were, or one sentence that names it.

    Formats without checksums (legacy and pickle) can have a flipped bit in a number; of them no
    more is asked than that nothing but a sentence or weights comes out.

    Args:
        case: the file.
        folder: takes it.

    Returns:
        Whether it is read.

    Raises:
        AssertionError: something else happened.
    """
    truth = Small(1).state_dict()
    path = folder / ("weights.pkl" if case.form == "pickle" else "weights.pth")
    path.write_bytes(_damaged(_file(case, truth), case.damage))
    model = Small(2)
    started = time.monotonic()
    try:
        RoutingCheckpointer(model, strict=True).load(str(path))
    except CheckpointError as error:
        reported = str(error)
        assert str(path) in reported, reported
        assert "\n" not in reported, reported
        assert "weights_only" not in reported, reported
        assert case.damage[0] != "none" or not case.known, reported
        return False
    finally:
        assert time.monotonic() - started < SECONDS
    assert case.known, "weights were found where nobody looks"
    assert case.damage[0] not in ("cut", "replace"), "a file that is not whole was read"
    if case.damage[0] != "flip" or case.form == "zip":
        for name, value in model.state_dict().items():
            assert value.equal(truth[name]), f"{name} is another one"
    return True


def _file(case: Case, state: Mapping[str, torch.Tensor]) -> bytes:
    content: Any = {case.prefix + name: value for name, value in state.items()}
    if case.form == "pickle":
        content = {name: value.numpy() for name, value in content.items()}
    for number, key in enumerate(reversed(case.wrappers), 1):
        beside = case.beside if number == len(case.wrappers) else {}
        content = {**beside, key: content}
    file = io.BytesIO()
    if case.form == "pickle":
        pickle.dump(content, file)
    else:
        torch.save(content, file, _use_new_zipfile_serialization=case.form == "zip")
    return file.getvalue()


def _damaged(data: bytes, damage: tuple[Any, ...]) -> bytes:
    kind, *rest = damage
    if kind == "cut":
        return data[: int(rest[0] * len(data))]
    if kind == "append":
        return data + rest[0]
    if kind == "replace":
        return rest[0]
    changed = bytearray(data)
    for place, bit in rest[0] if kind == "flip" else ():
        changed[int(place * len(data))] ^= 1 << bit
    return bytes(changed)


def _texts() -> st.SearchStrategy[bytes]:
    return st.text(max_size=200).map(str.encode)


def _pictures() -> st.SearchStrategy[bytes]:
    def draw(ending: str, rows: int, columns: int) -> bytes:
        file = io.BytesIO()
        Image.fromarray(np.zeros((rows, columns, 3), np.uint8)).save(file, ending)
        return file.getvalue()

    sizes = st.integers(1, 20)
    return st.builds(draw, st.sampled_from(("PNG", "JPEG", "GIF", "BMP")), sizes, sizes)
