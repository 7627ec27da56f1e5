"""Getting the photographs and their boxes out of DeepForest's wheel."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from divdr.errors import DataError

logger = logging.getLogger(__name__)

VERSION = "2.1.0"
WHEEL = f"deepforest-{VERSION}-py3-none-any.whl"
SHA256 = "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54"
LICENSE = f"deepforest-{VERSION}.dist-info/licenses/LICENSE"

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Photograph:
    """A photograph: its name, (H, W, 3) bytes of RGB, and (N, 4) boxes x0, y0, x1, y1 in pixels."""

    name: str
    pixels: np.ndarray
    boxes: np.ndarray


def download_wheel(folder: Path) -> Path:
    """Download the wheel with pip into a folder, unless it is there; the path of the wheel.

    Raises:
        DataError: this Python has no pip, or pip failed.
    """
    path = folder / WHEEL
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as growing:
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary=:all:", "--dest", growing, f"deepforest=={VERSION}"]
        logger.info("downloading %s (about 20 MB)", WHEEL)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if "No module named pip" in done.stderr:
            raise DataError(
                f"{sys.executable} has no pip to download deepforest {VERSION} with; use a Python "
                "that has it, or download the wheel elsewhere and name it with --wheel"
            )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it said nothing"]
            raise DataError(f"pip could not download deepforest {VERSION}: {lines[-1]}")
        if not (Path(growing) / WHEEL).is_file():
            raise DataError(f"pip downloaded no {WHEEL}")
        os.replace(Path(growing) / WHEEL, path)
    return path


def check_wheel(path: Path, sha256: str = SHA256) -> None:
    """See that a wheel is the one whose photographs were looked at.

    Raises:
        DataError: there is no such file, or its SHA-256 is another.
    """
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"cannot read the wheel {path}: {error.strerror}") from None
    if found != sha256:
        raise DataError(
            f"{path} is not {WHEEL} as it was published: its SHA-256 is {found}, not {sha256}; "
            "delete it and download it again"
        )


def read_member(wheel: Path, member: str) -> bytes:
    """The content of one file of a wheel.

    Raises:
        DataError: the wheel is no zip file, or has no such file.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(member)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read {member} in {wheel}: {error}") from None


def read_photograph(wheel: Path, name: str) -> Photograph:
    """Read a photograph and its boxes; boxes are clipped to it, those without area left out.

    Args:
        wheel: the wheel's path.
        name: of the photograph's PNG and XML, without ending.

    Raises:
        DataError: a file is missing or damaged, or the two do not belong together.
    """
    stem = f"deepforest/data/{name}"
    try:
        image = Image.open(io.BytesIO(read_member(wheel, f"{stem}.png"))).convert("RGB")
        root = ElementTree.fromstring(read_member(wheel, f"{stem}.xml"))
        size = tuple(int(root.findtext(f"size/{side}", "")) for side in ("width", "height"))
        # As DeepForest does, take the numbers for corners in pixels from 0, not from 1 as the
        # format's first users meant them: the boxes were drawn so.
        corners = [
            [float(box.findtext(corner, "")) for corner in _CORNERS]
            for box in root.iterfind("object/bndbox")
        ]
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise DataError(f"{stem} in {wheel} is damaged: {error}") from None
    if size != image.size:
        raise DataError(f"{stem}.xml in {wheel} is for {size} pixels, the image has {image.size}")
    boxes = _inside(np.array(corners).reshape(-1, 4), *image.size, name)
    return Photograph(name, np.asarray(image), boxes)


def _inside(boxes: np.ndarray, width: int, height: int, name: str) -> np.ndarray:
    clipped = np.clip(boxes, 0, [width, height, width, height])
    outside = int((clipped != boxes).any(axis=1).sum())
    if outside:
        logger.warning("%s: clipped %d boxes that stick out of the photograph", name, outside)
    solid = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    if not solid.all():
        logger.warning("%s: left out %d boxes without area", name, int((~solid).sum()))
    return clipped[solid]
