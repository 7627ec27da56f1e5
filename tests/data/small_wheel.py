"""A small stand-in for DeepForest's wheel."""

from __future__ import annotations

import hashlib
import io
import zipfile

import numpy as np
from PIL import Image
from prepared.neon_trees import NEON_SPLITS, prepare_neon_trees, wheel

TRAIN, TEST = NEON_SPLITS["train"][0], NEON_SPLITS["test"][0]
#: Size (width, height) and boxes of the stand-ins for the photographs.
PHOTOGRAPHS = {
    TRAIN: ((100, 80), [("Tree", 5, 5, 15, 15), ("Tree", 25, 2, 45, 12), ("Tree", 35, 64, 50, 74)]),
    TEST: (
        (70, 50),
        [("Tree", 20, 0, 50, 10), ("Tree", 30, 20, 40, 30), ("Tree", 50, 30, 60, 45)],
    ),
    "OSBS_029": ((40, 40), [("Tree", 2, 3, 12, 14)]),
    "SOAP_061": ((40, 40), [("Dead", 1, 1, 9, 9), ("Alive", 20, 20, 40, 40)]),
}


def pixels(name):
    """Different at every place, so that a tile tells where it was cut."""
    width, height = PHOTOGRAPHS[name][0]
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.full_like(x, len(name))], axis=-1).astype(np.uint8)


def xml(size, boxes):
    objects = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin>"
        f"<xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for label, a, b, c, d in boxes
    )
    return (
        f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>"
        f"{objects}</annotation>"
    )


def make_wheel(path, photographs=PHOTOGRAPHS):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(wheel.LICENSE, "The licence's own words.\n")
        for name, (size, boxes) in photographs.items():
            content = io.BytesIO()
            Image.fromarray(pixels(name)).save(content, "PNG")
            archive.writestr(f"deepforest/data/{name}.png", content.getvalue())
            archive.writestr(f"deepforest/data/{name}.xml", xml(size, boxes))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def prepare(root, small, **changes):
    arguments = {"tile": 40, "overlap": 10, "wheel": small[0], "sha256": small[1], **changes}
    prepare_neon_trees(root, **arguments)
