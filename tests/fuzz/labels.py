"""Label files of every mode, size and value, whole or damaged, and what must come of them.

See ``tests/fuzz/run.py`` for as many as there is time for.
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from divdr import get_divdr_config
from divdr.data import SemanticCropMapper
from divdr.data.checked_mapper import DetectionMapper
from divdr.errors import DataError
from divdr.image_files import check_label_map, read_labels

SECONDS = 5.0
"""Longest that one file may take; on a quiet machine it takes 0.01."""

CLASSES, IGNORED = 3, 255
SIZE = (6, 8)  # rows, columns of the image


@dataclass(frozen=True)
class LabelFile:
    """A file.

    Attributes:
        values: (H, W) whole numbers.
        kind: how they are stored.
        damage: place and byte of changes to the file, as shares of its length.
        cut: share of the file that is kept.
    """

    values: np.ndarray
    kind: str
    damage: tuple[tuple[float, int], ...] = ()
    cut: float = 1.0


KINDS = ("L png", "16 png", "1 png", "P png", "L tif", "32 tif", "float tif", "L bmp", "P gif")
COLOURS = ("RGB png", "RGBA png", "LA png", "CMYK tif")


@st.composite
def examples(draw: st.DrawFn) -> LabelFile:
    """Label files, most of which are sound."""
    size = (
        SIZE if draw(st.integers(0, 9)) else draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    )
    values = st.sampled_from([0, 1, 2, 255] if draw(st.booleans()) else [0, 1, 3, 254, 255])
    array = np.array(draw(st.lists(values, min_size=4, max_size=4)))
    array = np.resize(array, size)
    kind = draw(st.sampled_from(KINDS if draw(st.integers(0, 4)) else COLOURS))
    if not draw(st.integers(0, 2)):
        changes = st.tuples(st.floats(0, 0.999), st.integers(0, 255))
        damage = tuple(draw(st.lists(changes, max_size=4)))
        return LabelFile(array, kind, damage, draw(st.sampled_from([1.0, 1.0, 0.9, 0.5, 0.1, 0.0])))
    return LabelFile(array, kind)


def content(file: LabelFile) -> bytes:
    """The bytes of a file."""
    mode, ending = file.kind.split()
    small = file.values.astype(np.uint8)
    made = {
        "L": lambda: Image.fromarray(small),
        "16": lambda: Image.fromarray(file.values.astype(np.uint16)),
        "1": lambda: Image.fromarray(file.values > 0),
        "32": lambda: Image.fromarray(file.values.astype(np.int32)),
        "float": lambda: Image.fromarray(file.values.astype(np.float32)),
        "P": lambda: _palette(small),
        "LA": lambda: Image.merge("LA", [Image.fromarray(small)] * 2),
        "RGB": lambda: Image.fromarray(np.dstack([small] * 3)),
        "RGBA": lambda: Image.fromarray(np.dstack([small] * 4)),
        "CMYK": lambda: Image.fromarray(np.dstack([small] * 4), "CMYK"),
    }[mode]()
    buffer = io.BytesIO()
    # A GIF's palette is sorted anew unless one asks for the old order.
    options = {"optimize": False} if ending == "gif" else {}
    made.save(buffer, {"tif": "TIFF"}.get(ending, ending.upper()), **options)
    data = bytearray(buffer.getvalue())
    for place, byte in file.damage:
        data[int(place * len(data))] = byte
    return bytes(data[: int(file.cut * len(data))])


def check_one(file: LabelFile, folder: Path) -> bool:
    """Whether a file is either read rightly or reported in a sentence, by every reader alike.

    Args:
        file: of :func:`examples`.
        folder: takes the files.

    Returns:
        Whether it is used.

    Raises:
        AssertionError: it is not, or it takes too long.
    """
    mode, ending = file.kind.split()
    label, image = folder / f"label.{ending}", folder / "image.png"
    label.write_bytes(content(file))
    if not image.is_file():
        Image.new("RGB", SIZE[::-1]).save(image)
    values = (file.values > 0).astype(int) if mode == "1" else file.values
    fine = values.shape == SIZE and bool(np.isin(values, [*range(CLASSES), IGNORED]).all())
    whole = not file.damage and file.cut == 1
    started = time.monotonic()
    record = {"file_name": str(image), "sem_seg_file_name": str(label)}
    outcomes = {_outcome(label, lambda m=m: m(record)["sem_seg"].numpy()) for m in _mappers()}
    outcomes.add(_outcome(label, lambda: _evaluated(label)))
    assert len(outcomes) == 1, f"readers disagree: {outcomes}"
    (outcome,) = outcomes
    if whole and f"{mode} {ending}" in KINDS:
        assert (outcome is not None) == fine
    if whole and f"{mode} {ending}" in COLOURS:
        assert outcome is None
    if whole and outcome is not None:
        assert outcome == values.astype(np.int64).tobytes()
    assert time.monotonic() - started < SECONDS
    return outcome is not None


def _mappers() -> list:
    cfg = get_divdr_config()
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = CLASSES, IGNORED
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (SIZE[0],), "none"
    return [SemanticCropMapper(cfg), DetectionMapper(cfg, is_train=True)]


def _evaluated(path: Path) -> np.ndarray:
    labels = read_labels(path)
    check_label_map(labels, path, classes=CLASSES, ignore=IGNORED, size=SIZE)
    return labels.astype(np.int64)


def _outcome(path: Path, read) -> bytes | None:
    """The labels' bytes; None: refused in a sentence that names the file."""
    try:
        return read().astype(np.int64).tobytes()
    except DataError as error:
        reported = str(error)
        assert path.name in reported, reported
        assert "\n" not in reported
        return None


def _palette(values: np.ndarray) -> Image.Image:
    picture = Image.new("P", values.shape[::-1])
    picture.putdata(values.ravel().tolist())
    picture.putpalette([byte for n in range(256) for byte in (n, 255 - n, n // 2)])
    return picture
