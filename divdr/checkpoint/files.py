"""Reading and writing weight files safely: nothing but numbers is read, nothing is cut short.

Whatever is wrong with a file is reported in one sentence that names it.
"""

from __future__ import annotations

import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from ..errors import CheckpointError
from .sharing import as_safetensors, read_safetensors

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
_ZIP = b"PK\x03\x04"
_CHUNK = 1 << 20
_OTHER_FILES = (  # how files begin that are given as weights by mistake
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"BM", "a BMP picture"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"version https://git-lfs", "a Git LFS pointer in place of the file itself"),
)


class _ArraysOnly(pickle.Unpickler):
    """Reads pickles of arrays and plain containers, such as Detectron2's model zoo has."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no number")
        return super().find_class(module, name)


def weight_file(path: str | os.PathLike) -> Path:
    """The file that a path means: itself, or the last checkpoint of a run's folder.

    Args:
        path: a file, or a folder with ``model_final.pth``, or else with a ``last_checkpoint`` that
            names a file in it.

    Raises:
        CheckpointError: there is no such file or folder, or the folder holds no checkpoint.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"checkpoint {path} does not exist")
    note = path / "last_checkpoint"
    try:
        named = [path / "model_final.pth"]
        if note.is_file():
            named.append(path / note.read_text(encoding="utf-8").strip())
        found = next((file for file in named if file.is_file()), None)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"file {note} cannot be read ({error})") from None
    if found is None:
        raise CheckpointError(
            f"folder {path} holds no checkpoint: neither model_final.pth nor one that a "
            "last_checkpoint names"
        )
    return found


def read_weights(path: str | os.PathLike) -> Any:
    """Content of a ``.pth`` (read with ``weights_only``), ``.pkl`` (arrays only) or
    ``.safetensors`` file, on CPU.

    PyTorch does not check the checksums that its files have held since 1.6; here a single changed
    bit in one is noticed. Older ones and ``.pkl`` hold none.

    Raises:
        CheckpointError: the file is missing, a folder, damaged, of another kind, or holds more than
            numbers.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"checkpoint {path} is a folder, and must be a file")
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    try:
        with path.open("rb") as file:
            head = file.read(512)
            if path.suffix == ".pkl" and not head.startswith(_ZIP):
                file.seek(0)
                _check_memo(file)
                file.seek(0)
                return _ArraysOnly(file, encoding="latin1").load()
        if head.startswith(_ZIP):
            _check_parts(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read ({_words(error)})") from None
    except Exception as error:  # a damaged file can raise anything
        raise CheckpointError(f"checkpoint {path} {_fault(head, error)}") from None


def write_atomically(path: str | os.PathLike, content: Any) -> None:
    """``torch.save`` into a file that is there whole or not at all, whenever the process ends.

    Raises:
        CheckpointError: it cannot be written: the disk is full, say, or the folder is closed. The
            file before, if any, is still there.
    """
    _replace(Path(path), lambda file: torch.save(content, file))


def write_text_atomically(path: str | os.PathLike, text: str) -> None:
    """Write a small text file whole or not at all.

    Raises:
        CheckpointError: see :func:`write_atomically`.
    """
    _replace(Path(path), lambda file: file.write(text.encode()))


def write_checkpoint(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically, as safetensors where the file's name ends so, else by PyTorch.

    Raises:
        CheckpointError: see :func:`write_atomically`; or it does not fit into safetensors.
    """
    if Path(path).suffix == ".safetensors":
        data = as_safetensors(content)
        _replace(Path(path), lambda file: file.write(data))
    else:
        write_atomically(path, dict(content))


def is_whole(path: str | os.PathLike) -> bool:
    """Whether a ``.pth`` file is complete: its index stands at the end and names every part."""
    try:
        with zipfile.ZipFile(path) as archive:
            return bool(archive.namelist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


def _check_memo(file: IO[bytes]) -> None:
    """See that a pickle is well-formed and numbers what it remembers in turn: Python makes room for
    as many things as a damaged number says, which can be more than the machine has.
    """
    numbered = 0
    for operation, argument, _ in pickletools.genops(file):
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            if int(argument or 0) > numbered:
                raise pickle.UnpicklingError("its parts are not numbered in turn")
            numbered += 1
        elif operation.name == "MEMOIZE":
            numbered += 1


def _check_parts(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        # Older versions of PyTorch run these whatever `weights_only` says.
        if any(part.filename.endswith("/constants.pkl") for part in parts):
            raise ValueError("a TorchScript program")
        if not any(part.CRC for part in parts):  # written without checksums
            return
        for part in parts:
            with archive.open(part) as file:
                while file.read(_CHUNK):
                    pass


def _fault(head: bytes, error: Exception) -> str:
    """What is wrong with a file that begins with ``head`` and could not be read."""
    if not head:
        return "is empty"
    kind = next((kind for start, kind in _OTHER_FILES if head.startswith(start)), None)
    if kind is None and _is_text(head):
        kind = "a text"
    if kind is not None:
        return f"is {kind}, no weight file"
    return f"is damaged or holds more than weights ({_words(error)})"


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return all(c.isprintable() or c in "\n\r\t" for c in text)


def _words(error: Exception) -> str:
    """An error's own words without PyTorch's advice, which is to run whatever the file holds."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error)
    held = re.search(r"GLOBAL ([\w.]+)", text)
    if held:
        return f"it holds {held[1]}, which is no number"
    lines = [line for line in text.splitlines() if "weights_only" not in line and line.strip()]
    return lines[0].strip() if lines else type(error).__name__


def _replace(path: Path, write) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        try:
            with partial.open("wb") as file:
                write(file)
                _sync(file)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # PyTorch's writer has errors of its own
        raise CheckpointError(f"file {path} cannot be written ({_cause(error)})") from None


def _cause(error: Exception) -> str:
    """The system's reason, which PyTorch's own error may stand before."""
    earlier: BaseException | None = error
    while earlier is not None:
        if isinstance(earlier, OSError):
            return _words(earlier)
        earlier = earlier.__cause__ or earlier.__context__
    return _words(error)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
