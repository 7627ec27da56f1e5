"""Reading and writing weight files safely: nothing but numbers is read, nothing is cut short."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

from ..errors import CheckpointError

_ALLOWED = {
    ("collections", "OrderedDict"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
}


class _ArraysOnly(pickle.Unpickler):
    """Reads pickles of arrays and plain containers, such as Detectron2's model zoo has."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise CheckpointError(f"the weight file holds {module}.{name}, which is no number")
        return super().find_class(module, name)


def read_weights(path: str | os.PathLike) -> Any:
    """Content of a ``.pth`` (read with ``weights_only``) or ``.pkl`` (arrays only) file, on CPU.

    Raises:
        CheckpointError: the file is missing, damaged, or holds more than numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    try:
        if path.suffix == ".pkl":
            with path.open("rb") as file:
                return _ArraysOnly(file, encoding="latin1").load()
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"checkpoint {path} is damaged or holds more than weights ({reason})"
        ) from None


def write_atomically(path: str | os.PathLike, content: Any) -> None:
    """``torch.save`` into a file that is there whole or not at all, whenever the process ends."""
    _replace(Path(path), lambda file: torch.save(content, file))


def write_text_atomically(path: str | os.PathLike, text: str) -> None:
    """Write a small text file whole or not at all."""
    _replace(Path(path), lambda file: file.write(text.encode()))


def is_whole(path: str | os.PathLike) -> bool:
    """Whether a ``.pth`` file is complete: its index stands at the end and names every part."""
    try:
        with zipfile.ZipFile(path) as archive:
            return bool(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _replace(path: Path, write) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            _sync(file)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
