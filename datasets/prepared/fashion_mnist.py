"""Getting the real Fashion-MNIST: from its authors by torchvision, or from Debian's archive."""

from __future__ import annotations

import logging
import shutil
import subprocess
import tempfile
from pathlib import Path

from divdr.data.classification.formats import read_fashion_mnist
from divdr.errors import DataError

logger = logging.getLogger(__name__)

FILES = tuple(
    f"{split}-{kind}-ubyte.gz"
    for split in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
)
PACKAGE = "dataset-fashion-mnist"


def prepare_fashion_mnist(output: str | Path, source: str = "auto", deb: str = "") -> Path:
    """Put the four files of Fashion-MNIST into ``output``/fashion_mnist; nothing if they are there.

    Args:
        output: the folder that $DETECTRON2_DATASETS names.
        source: "torchvision", "debian" (``apt-get download`` and ``dpkg-deb``, without root), or
            "auto", the first of them that works.
        deb: a file of Debian's package that is there already.

    Returns:
        The folder.

    Raises:
        DataError: no source works, or what came is not Fashion-MNIST.
    """
    folder = Path(output) / "fashion_mnist"
    if not all((folder / name).is_file() for name in FILES):
        with tempfile.TemporaryDirectory() as scratch:
            found = _fetch(Path(scratch), source, deb)
            folder.mkdir(parents=True, exist_ok=True)
            for name in FILES:
                shutil.copyfile(found / name, folder / name)
    for split, count in (("train", 60000), ("test", 10000)):
        images = read_fashion_mnist(folder, split)
        if len(images.pixels) != count:
            raise DataError(f"{folder} holds {len(images.pixels)} images to {split}, not {count}")
    logger.info("Fashion-MNIST is in %s", folder)
    return folder


def _fetch(scratch: Path, source: str, deb: str) -> Path:
    if deb:
        return _unpack(Path(deb), scratch)
    ways = {"torchvision": _by_torchvision, "debian": _by_debian}
    chosen = list(ways) if source == "auto" else [source]
    problems = []
    for name in chosen:
        try:
            return ways[name](scratch)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            problems.append(f"{name}: {' '.join(str(error).split())[:200]}")
            logger.info("No Fashion-MNIST from %s", problems[-1])
    raise DataError(f"Fashion-MNIST could not be had ({'; '.join(problems)})")


def _by_torchvision(scratch: Path) -> Path:
    from torchvision.datasets import FashionMNIST

    FashionMNIST(str(scratch), download=True)
    return scratch / "FashionMNIST" / "raw"


def _by_debian(scratch: Path) -> Path:
    _run(["apt-get", "download", PACKAGE], scratch)
    found = sorted(scratch.glob(f"{PACKAGE}_*.deb"))
    if not found:
        raise OSError(f"apt-get left no {PACKAGE}_*.deb")
    return _unpack(found[0], scratch)


def _unpack(deb: Path, scratch: Path) -> Path:
    try:
        _run(["dpkg-deb", "-x", str(deb.resolve()), str(scratch / "unpacked")], scratch)
    except OSError as error:
        raise DataError(f"{deb} cannot be unpacked ({error})") from None
    found = sorted((scratch / "unpacked").rglob(FILES[0]))
    if not found:
        raise DataError(f"{deb} does not hold {FILES[0]}")
    return found[0].parent


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-200:]}")
