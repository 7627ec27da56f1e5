"""Drawn images in the published formats of classification data sets."""

import gzip
import pickle
import struct

import numpy as np
from PIL import Image


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


def write_imagenet32(folder, generator, *, packed, count=1000, batches=10):
    """Pickled batches in folders of their own, or npz files; labels from 1."""
    for split, names in (
        ("train", [f"train_data_batch_{n}" for n in range(1, batches + 1)]),
        ("val", ["val_data"]),
    ):
        own = folder / f"Imagenet32_{split}{'_npz' if packed else ''}"
        own.mkdir(parents=True)
        shares = np.array_split(1 + np.arange(count) % 1000, len(names))
        for name, labels in zip(names, shares, strict=True):
            data = generator.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
            batch = {"data": data, "labels": labels if packed else labels.tolist()}
            if split == "train":
                batch["mean"] = data.mean(0)
            if packed:
                np.savez(own / f"{name}.npz", **batch)
            else:
                (own / name).write_bytes(pickle.dumps(batch, protocol=2))


def write_food101(folder, generator, each=1):
    (folder / "meta").mkdir(parents=True)
    names = [f"dish_{n:03d}" for n in range(101)]
    (folder / "meta" / "classes.txt").write_text("\n".join(names) + "\n")
    for split, first in (("train", 0), ("test", each)):
        lines = [
            f"{name}/{100 * n + first + k}" for n, name in enumerate(names) for k in range(each)
        ]
        (folder / "meta" / f"{split}.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            _photograph(folder / "images" / f"{line}.jpg", generator, (16, 12))


def write_tiny_imagenet(folder, generator):
    names = [f"n{n:08d}" for n in range(200)]
    folder.mkdir(parents=True)
    (folder / "wnids.txt").write_text("\n".join(names) + "\n")
    lines = []
    for number, name in enumerate(names):
        path = folder / "train" / name / "images" / f"{name}_0.JPEG"
        _photograph(path, generator, (64, 64))
        if number < 20:
            _photograph(folder / "val" / "images" / f"val_{number}.JPEG", generator, (64, 64))
            lines.append(f"val_{number}.JPEG\t{name}\t0\t0\t62\t62")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(reversed(lines)) + "\n")


def write_cub200(folder, generator):
    rows = [(n, f"{n:03d}.Bird/Bird_{k}.jpg", k) for n in range(1, 201) for k in range(2)]
    for _, name, _ in rows:
        _photograph(folder / "images" / name, generator, (20, 24))
    for file, place in (("images", 1), ("image_class_labels", 0), ("train_test_split", 2)):
        lines = [f"{number} {row[place]}" for number, row in enumerate(rows, 1)]
        (folder / f"{file}.txt").write_text("\n".join(lines) + "\n")


def _photograph(path, generator, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
