"""Reading the published files of CIFAR, ImageNet32 and Fashion-MNIST, and scikit-learn's digits.

Each reader returns images (N, H, W) or (N, H, W, 3) uint8 and labels (N,) int64.
"""

from __future__ import annotations

import gzip
import io
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import DataError


class Images(NamedTuple):
    """Images, labels, and what the files say about the classes.

    Attributes:
        pixels: (N, H, W) or (N, H, W, 3) uint8, RGB.
        labels: (N,) int64.
        coarse: super-class of each class, where the files know one.
    """

    pixels: np.ndarray
    labels: np.ndarray
    coarse: list[int] | None = None


def read_fashion_mnist(folder: Path, split: str) -> Images:
    """``{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]`` (the format of MNIST).

    Raises:
        DataError: a file is missing or not as it must be.
    """
    stem = "train" if split == "train" else "t10k"
    pixels = _read_idx(folder / f"{stem}-images-idx3-ubyte", 3)
    labels = _read_idx(folder / f"{stem}-labels-idx1-ubyte", 1).astype(np.int64)
    return _checked(folder, Images(pixels, labels))


def read_cifar(folder: Path, split: str, classes: int) -> Images:
    """CIFAR-10 or -100 in the Python version (pickled batches) or the binary version.

    Args:
        folder: "cifar-10-batches-py", "cifar-10-batches-bin", "cifar-100-python" or
            "cifar-100-binary", unpacked.
        split: "train" or "test".
        classes: 10 or 100.

    Raises:
        DataError: a file is missing or not as it must be.
    """
    if classes == 10:
        names = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    else:
        names = [split]
    binary = folder.name.endswith(("bin", "binary"))
    read = _read_cifar_binary if binary else _read_cifar_pickle
    parts = [read(folder / (name + ".bin" if binary else name), classes) for name in names]
    pixels, labels, coarse = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return _checked(folder, Images(images, labels, _super_classes(labels, coarse, classes)))


def read_imagenet32(folder: Path, split: str) -> Images:
    """ImageNet32 in its pickled batches or as npz: labels are 1 to 1000 there, from 0 here.

    Args:
        folder: holds ``train_data_batch_1`` to ``_10`` and ``val_data``, each as it is or with
            ".npz" behind; in folders of their own too (``Imagenet32_train``, ``Imagenet32_val``,
            the same with ``_npz``), as they are packed.
        split: "train", or "test" for the validation images.

    Raises:
        DataError: a file is missing or not as it must be.
    """
    if split == "train":
        names = [f"train_data_batch_{number}" for number in range(1, 11)]
    else:
        names = ["val_data"]
    own = f"Imagenet32_{'train' if split == 'train' else 'val'}"
    parts = [_read_imagenet32(_existing(folder, own, name)) for name in names]
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return _checked(folder, Images(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels - 1))


def _existing(folder: Path, own: str, name: str) -> Path:
    places = [(folder, name), (folder / own, name)]
    places += [(folder, f"{name}.npz"), (folder / f"{own}_npz", f"{name}.npz")]
    paths = [place / file for place, file in places]
    return next((path for path in paths if path.is_file()), paths[1])


def _read_imagenet32(path: Path) -> tuple[np.ndarray, np.ndarray]:
    content = io.BytesIO(_bytes(path))
    try:
        if path.suffix == ".npz":
            batch = np.load(content, allow_pickle=False)
        else:
            batch = _Arrays(content, encoding="latin1").load()
        pixels = np.asarray(batch["data"], np.uint8).reshape(-1, 3072)
        return pixels, np.asarray(batch["labels"], np.int64)
    except Exception as error:  # a damaged file can raise anything
        raise DataError(f"{path} is no batch of ImageNet32 ({error})") from None


def read_digits(split: str) -> Images:
    """scikit-learn's 1797 digits of 8 × 8 pixels: the first 1347 to train, the last 450 to test."""
    from sklearn.datasets import load_digits

    data = load_digits()
    part = slice(None, 1347) if split == "train" else slice(1347, None)
    pixels = np.round(data.images[part] * (255 / 16)).astype(np.uint8)
    return Images(pixels, data.target[part].astype(np.int64))


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    content = _bytes(path if path.exists() else path.with_name(path.name + ".gz"))
    try:
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        # Two zeros, 8 for unsigned bytes, the number of dimensions, then their lengths.
        if content[:4] != bytes((0, 0, 8, dimensions)):
            raise ValueError(f"its first bytes are {content[:4].hex(' ')}")
        header = 4 + 4 * dimensions
        shape = np.frombuffer(content[4:header], ">u4")
        return np.frombuffer(content[header:], np.uint8).reshape(shape)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} is no IDX file of {dimensions} dimensions ({error})") from None


def _read_cifar_pickle(path: Path, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    try:
        batch = _Arrays(io.BytesIO(_bytes(path)), encoding="bytes").load()
        pixels = np.asarray(batch[b"data"], np.uint8).reshape(-1, 3072)
        labels = np.asarray(batch[b"labels" if classes == 10 else b"fine_labels"], np.int64)
        coarse = np.asarray(batch.get(b"coarse_labels", [-1] * len(labels)), np.int64)
    except DataError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f"{path} is no batch of CIFAR-{classes} ({error})") from None
    return pixels, labels, coarse


def _read_cifar_binary(path: Path, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    head = 1 if classes == 10 else 2
    content = np.frombuffer(_bytes(path), np.uint8)
    if len(content) == 0 or len(content) % (head + 3072):
        raise DataError(f"{path} is no binary batch of CIFAR-{classes}: {len(content)} bytes")
    rows = content.reshape(-1, head + 3072)
    coarse = rows[:, 0].astype(np.int64) if head == 2 else np.full(len(rows), -1)
    return rows[:, head:], rows[:, head - 1].astype(np.int64), coarse


class _Arrays(pickle.Unpickler):
    """Reads arrays, lists, strings and numbers; a pickle that wants anything else is refused."""

    _ALLOWED = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "_codecs")
    _NAMES = ("_reconstruct", "ndarray", "dtype", "scalar", "encode")

    def find_class(self, module: str, name: str) -> Any:
        if module in self._ALLOWED and name in self._NAMES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}")


def _super_classes(labels: np.ndarray, coarse: np.ndarray, classes: int) -> list[int] | None:
    if len(coarse) == 0 or coarse.min() < 0:
        return None
    found = np.full(classes, -1)
    valid = (labels >= 0) & (labels < classes)
    found[labels[valid]] = coarse[valid]
    return found.tolist() if found.min() >= 0 else None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None


def _checked(folder: Path, images: Images) -> Images:
    if len(images.pixels) != len(images.labels):
        raise DataError(
            f"{folder} holds {len(images.pixels)} images, but {len(images.labels)} labels"
        )
    return images
