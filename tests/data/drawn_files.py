"""What the tests of both generators read from a folder."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image


def content(root):
    """{path below the folder: hash of the file}."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(root).rglob("*"))
        if path.is_file()
    }


def read(path):
    """Pixels of an image file."""
    return np.asarray(Image.open(path))
