"""Folders of images, with a label file for each or sorted by class, as Detectron2 data sets."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import DataError
from ..image_files import image_files

logger = logging.getLogger(__name__)

# What systems and programs put among people's folders.
_NO_CLASSES = ("__MACOSX", "__pycache__", "@eaDir", "lost+found")


def register_segmentation_folder(
    name: str,
    image_dir: str,
    label_dir: str,
    classes: Sequence[str],
    *,
    image_ext: str = "",
    label_ext: str = "",
    ignore_label: int = 255,
    colors: Sequence[tuple[int, int, int]] | None = None,
) -> None:
    """Make a folder of images and one of label files a Detectron2 data set.

    A label file has the name and the sub-folder of its image, whatever its ending; its pixels are
    class numbers from 0. Files are found by looking, in any mixture of formats and of upper and
    lower case; hidden ones are left out. A name that is registered already is registered anew.

    Args:
        name: to use in ``cfg.DATASETS``.
        image_dir: folder of the images.
        label_dir: folder of the labels.
        classes: names, in the order of the numbers.
        image_ext: take image files of this ending alone; "": of any.
        label_ext: the same of label files.
        ignore_label: value of pixels without a class.
        colors: one (R, G, B) per class for pictures.

    Raises:
        DataError: a folder is missing, images are without labels, or two have one name.
    """

    def load() -> list[dict]:
        return labelled_images(name, image_dir, label_dir, image_ext, label_ext)

    if not classes or len({*classes}) < len(classes):
        raise DataError(f"data set {name!r} needs a name of its own for each class: {[*classes]}")
    if colors is not None and len(colors) != len(classes):
        raise DataError(f"data set {name!r} has {len(classes)} classes and {len(colors)} colours")
    load()
    metadata = {
        "stuff_classes": [str(each) for each in classes],
        "image_root": image_dir,
        "sem_seg_root": label_dir,
        "evaluator_type": "sem_seg",
        "ignore_label": ignore_label,
    }
    if colors is not None:
        metadata["stuff_colors"] = [tuple(colour) for colour in colors]
    register_anew(name, load, **metadata)


def register_class_folders(name: str, root: str, classes: Sequence[str] | None = None) -> None:
    """Make a folder that holds one folder of images for each class a data set.

    Hidden folders, and those that systems make (``__MACOSX``), are no classes; a folder without an
    image is one, which is said. A name that is registered already is registered anew.

    Args:
        name: to use in ``cfg.DATASETS``.
        root: of the folders.
        classes: names of the folders, in the order of the labels; None: all, sorted. Give the same
            for training and test where one of them lacks a class.

    Raises:
        DataError: the folder or one of the classes is missing, or there are no images.
    """
    names = class_folder_names(name, root, classes)

    def load() -> list[dict]:
        return class_folder_images(name, root, names)

    load()
    register_anew(name, load, classes=names, evaluator_type="classification", image_root=root)


def class_folder_names(name: str, root: str, classes: Sequence[str] | None = None) -> list[str]:
    """The classes of :func:`register_class_folders`, in the order of their labels.

    Raises:
        DataError: the folder or one of the classes is missing.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(f"data set {name!r} expects folders of classes in {root}, which is none")
    present = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and entry.name not in _NO_CLASSES
    )
    names = list(classes) if classes is not None else present
    if not names:
        raise DataError(f"data set {name!r}: {root} holds no folder of a class")
    missing = [n for n in names if n not in present]
    if missing:
        raise DataError(f"data set {name!r}: {root} holds no folder {missing[0]!r}")
    others = [n for n in present if n not in names]
    if others:
        logger.warning(
            "data set %r: %s holds folders that are not among its classes: %s",
            name,
            root,
            ", ".join(map(repr, others[:5])),
        )
    return names


def class_folder_images(name: str, root: str, classes: Sequence[str]) -> list[dict]:
    """Dicts of the images of :func:`class_folder_names`, class after class.

    Raises:
        DataError: there are none.
    """
    folder = Path(root)
    found = [
        {"file_name": str(file), "image_id": str(file.relative_to(folder)), "label": label}
        for label, class_name in enumerate(classes)
        for file in images_below(folder / class_name)
    ]
    if not found:
        raise DataError(f"data set {name!r}: the folders of classes in {root} hold no image")
    return found


def register_anew(name: str, load: Callable[[], list[dict]], **metadata: object) -> None:
    """Register a data set, in the place of another of that name.

    Args:
        name: to use in ``cfg.DATASETS``.
        load: gives its dicts.
        metadata: entries of its metadata.
    """
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        logger.info("Data set %r is registered anew", name)
    if name in MetadataCatalog.list():
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(**metadata)


def labelled_images(
    name: str, image_dir: str, label_dir: str, image_ext: str = "", label_ext: str = ""
) -> list[dict]:
    """Dicts of a folder's images with their label files; see :func:`register_segmentation_folder`.

    Raises:
        DataError: a folder is missing, images are without labels, or two have one name.
    """
    found = {}
    for folder, ext, what in ((image_dir, image_ext, "images"), (label_dir, label_ext, "labels")):
        if not os.path.isdir(folder):
            raise DataError(f"data set {name!r} expects its {what} in {folder}, which is no folder")
        found[what] = _by_stem(name, folder, ext)
        if not found[what]:
            of = f".{ext} " if ext else ""
            raise DataError(f"data set {name!r}: {folder} holds no {of}{what}")
    images, labels = found["images"], found["labels"]
    missing = [image for stem, image in images.items() if stem not in labels]
    if missing:
        raise DataError(
            f"image {missing[0].relative_to(image_dir)} of data set {name!r} has no label in "
            f"{label_dir}" + (f", nor have {len(missing) - 1} others" if len(missing) > 1 else "")
        )
    alone = [label for stem, label in labels.items() if stem not in images]
    if alone:
        logger.warning(
            "data set %r: %d labels have no image in %s and are left out, the first is %s",
            name,
            len(alone),
            image_dir,
            alone[0].relative_to(label_dir),
        )
    return [
        {"file_name": str(image), "sem_seg_file_name": str(labels[stem])}
        for stem, image in sorted(images.items())
    ]


def _by_stem(name: str, folder: str, ext: str) -> dict[str, Path]:
    """Image files by their path below the folder, without its ending."""
    found: dict[str, Path] = {}
    ending = "." + ext.lower().lstrip(".")
    for file in images_below(Path(folder)):
        if ext and not file.name.lower().endswith(ending):
            continue
        stem = file.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            raise DataError(
                f"data set {name!r}: {folder} holds {found[stem].name} and {file.name}, and nobody "
                "can tell which one is meant; name an ending"
            )
        found[stem] = file
    return found


def images_below(folder: Path) -> list[Path]:
    """Image files of a folder, and of those below it that neither are hidden nor a system's."""
    found = image_files(folder)
    for entry in sorted(folder.iterdir()):
        inner = entry.is_dir() and not entry.name.startswith(".")
        if inner and entry.name not in _NO_CLASSES:
            found += images_below(entry)
    return found
