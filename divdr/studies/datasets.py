"""Data sets of studies, each made once by its command."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from ..errors import DataError


def data_folder(command: tuple[str, ...], store: Path) -> Path:
    """Folder of the data set that a command makes: the command's name and a hash of its words.

    Args:
        command: ``datasets/NAME.py`` and its options, ``--output`` left out.
        store: folder of all data sets of studies.
    """
    digest = hashlib.sha256(json.dumps(list(command)).encode()).hexdigest()[:8]
    return store / f"{Path(command[0]).stem}_{digest}"


def make_data(command: tuple[str, ...], store: Path, root: Path) -> Path:
    """Run the command that makes a data set; it skips what is there.

    Args:
        command: see ``data_folder``.
        store: see ``data_folder``.
        root: the repository, in which the command runs.

    Returns:
        The folder that $DETECTRON2_DATASETS must name.

    Raises:
        DataError: the command failed.
    """
    place = data_folder(command, store)
    words = [sys.executable, "-W", "ignore", *command, "--output", str(place)]
    if subprocess.run(words, cwd=root, check=False).returncode:
        raise DataError(f"`{' '.join(command)}` failed; its own words stand above")
    return place
