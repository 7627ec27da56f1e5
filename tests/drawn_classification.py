"""Drawn images in the published formats of classification data sets."""

import gzip
import pickle
import struct

import numpy as np


def draw_published(folder):
    generator = np.random.default_rng(0)
    coarse_of = generator.permutation(np.arange(100) % 20)
    write_cifar100(folder / "cifar-100-python", generator, coarse_of, binary=False)
    write_fashion_mnist(folder / "fashion_mnist", generator)


def write_cifar100(folder, generator, coarse_of, *, binary, count=200):
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        data = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        fine = np.arange(count) % 100
        if binary:
            head = np.stack([coarse_of[fine], fine], 1).astype(np.uint8)
            (folder / f"{split}.bin").write_bytes(np.hstack([head, data]).tobytes())
            continue
        batch = {
            b"data": data,
            b"fine_labels": fine.tolist(),
            b"coarse_labels": coarse_of[fine].tolist(),
            b"filenames": [b"x.png"] * count,
        }
        (folder / split).write_bytes(pickle.dumps(batch, protocol=2))


def write_fashion_mnist(folder, generator, count=12):
    folder.mkdir(parents=True)
    for split in ("train", "t10k"):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = struct.pack(">4B3I", 0, 0, 8, 3, count, 28, 28)
        path = folder / f"{split}-images-idx3-ubyte.gz"
        path.write_bytes(gzip.compress(header + images.tobytes()))
        labels = struct.pack(">4BI", 0, 0, 8, 1, count) + bytes(i % 10 for i in range(count))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(labels)  # not compressed
