"""Data sets of one's own by name: what ``DATASETS.CUSTOM`` says of files, as Detectron2 data sets.

An entry is a dict of plain values, one data set or, with a split, two: ``docs/guide/own_data.md``
tells its keys. Registering reads no images and no annotations; what is wrong with those is told by
the checks of a run.
"""

from __future__ import annotations

import difflib
import os
import re
import reprlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from ..errors import ConfigError, DataError, DivdrError
from .coco_json import check_file
from .folders import (
    class_folder_images,
    class_folder_names,
    labelled_images,
    register_anew,
)
from .shares import training_share
from .voc import image_sets, read_voc_boxes, read_voc_masks
from .yolo import read_plain_yaml, read_yolo, read_yolo_yaml

KEY = "DATASETS.CUSTOM"

Entry = dict[str, Any]


class _Part(NamedTuple):
    """One data set.

    Attributes:
        load: gives its dicts, for the name that it is registered by.
        metadata: what is known without reading it.
    """

    load: Callable[[str], list[dict]]
    metadata: dict[str, Any]


class _Kind(NamedTuple):
    """What an entry of a kind must have, and may have beside what every entry may.

    Attributes:
        parts: makes the data sets of an entry; "" is the whole, others are added to its name.
    """

    parts: Callable[[Entry], dict[str, _Part]]
    needs: tuple[str, ...]
    may: tuple[str, ...] = ()


_PATHS = ("images", "labels", "json", "path", "yaml")
_ALWAYS = ("name", "kind", "classes", "split", "seed", "group")


def located_entries(value: Any, folder: str, where: str = "") -> list[Entry]:
    """The entries that a value of ``DATASETS.CUSTOM`` means, whose paths hold in any folder.

    Args:
        value: an entry, a yaml file of entries, or a list of both. A file may also be a YOLO
            ``data.yaml`` itself, whose data set is then called by its folder.
        folder: that relative paths start from; those in a yaml file start from the file's.
        where: begins the sentences of errors.

    Raises:
        ConfigError: an entry, or a file of them, is not as it must be.
    """
    entries: list[Entry] = []
    for each in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(each, str) and each:
            entries += _of_file(_placed(each, folder), where)
        elif isinstance(each, dict):
            entries.append(_checked(each, folder, where))
        else:
            raise ConfigError(
                f"{where}{KEY} holds entries (name, kind, ...) and files of them, not "
                f"{reprlib.repr(each)}"
            )
    return entries


def use_custom_data(cfg: CfgNode) -> None:
    """Register the data sets of ``DATASETS.CUSTOM``; in a config that names no data set, use them.

    Then those called …_train are trained on, or all that are not called …_val or …_test where none
    is, and those called …_val are evaluated on.

    Raises:
        ConfigError: an entry is not as it must be, or its name stands for another data set.
    """
    names = register_custom(cfg.DATASETS.CUSTOM)
    if cfg.DATASETS.TRAIN or cfg.DATASETS.TEST or not names:
        return
    kept = [name for name in names if name.endswith("_val")]
    others = [n for n in names if not n.endswith(("_val", "_test", "_trainval"))]
    cfg.DATASETS.TRAIN = tuple([n for n in names if n.endswith("_train")] or others)
    cfg.DATASETS.TEST = tuple(kept)


def register_custom(entries: Sequence[Any]) -> list[str]:
    """Register data sets; those that are registered already, by the same entry, stay.

    Args:
        entries: see :func:`located_entries`; relative paths start from the working folder.

    Returns:
        The names of all their data sets.

    Raises:
        ConfigError: an entry is not as it must be, or its name stands for another data set.
    """
    names = []
    for entry in located_entries(list(entries), ""):
        for name, part in _parts(entry).items():
            names.append(name)
            if name in DatasetCatalog.list():
                if MetadataCatalog.get(name).get("custom", None) != entry:
                    raise ConfigError(
                        f"{KEY}: a data set {name!r} of other content is registered already; give "
                        "this one another name"
                    )
                continue
            register_anew(name, partial(part.load, name), custom=entry, **part.metadata)
    return names


def _of_file(path: str, where: str) -> list[Entry]:
    whole = _expanded(path)
    try:
        content = read_plain_yaml(whole)
    except ConfigError as error:
        raise ConfigError(f"{where}{KEY}: {error}") from None
    folder = os.path.dirname(os.path.abspath(whole))
    if isinstance(content, dict) and "names" in content and "kind" not in content:
        own = re.sub(r"[^\w.-]+", "_", os.path.basename(folder)) or "yolo"
        return [_checked({"name": own, "kind": "yolo", "yaml": path}, folder, f"{whole}: ")]
    listed = [content] if isinstance(content, dict) else content
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise ConfigError(
            f"{where}{KEY}: {whole} holds no entry with name and kind, nor a list of them"
        )
    return [_checked(each, folder, f"{whole}: ") for each in listed]


def _placed(path: str, folder: str) -> str:
    """A path that holds in any working folder; one that begins with a variable stays as it is."""
    path = os.path.expanduser(path)
    if path.startswith("$") or "://" in path:
        return path
    return os.path.normpath(os.path.join(os.path.abspath(folder), path))


def _expanded(path: str) -> str:
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    return os.path.expandvars(path.replace("$DETECTRON2_DATASETS", root, 1))


def _checked(entry: dict[Any, Any], folder: str, where: str) -> Entry:
    name, kind = entry.get("name"), entry.get("kind")
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise ConfigError(
            f"{where}an entry of {KEY} has the name {reprlib.repr(name)}; it is of letters, "
            "digits, and any of _ . -"
        )
    own = f"{where}data set {name!r}"
    if kind not in KINDS:
        raise ConfigError(f"{own} is of kind {kind!r}; kinds are {', '.join(KINDS)}")
    needs, may = KINDS[kind].needs, KINDS[kind].may
    for key in entry:
        if key not in (*_ALWAYS, *needs, *may):
            close = difflib.get_close_matches(str(key), [*_ALWAYS, *needs, *may], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"{own} has the key {key!r}, which kind {kind} does not know{hint}")
    for key in needs:
        if key not in entry:
            raise ConfigError(f"{own} lacks {key!r}, which kind {kind} needs")
    found: Entry = dict(entry)
    for key in _PATHS:
        if key in found:
            if not isinstance(found[key], str) or not found[key]:
                raise ConfigError(f"{own}: {key!r} must be a path, not {reprlib.repr(found[key])}")
            found[key] = _placed(found[key], folder)
    for problem in _problems(found):
        raise ConfigError(f"{own}: {problem}")
    if "classes" in found:
        found["classes"] = [str(each) for each in found["classes"]]
    return found


def _problems(entry: Entry) -> Iterator[str]:
    if "classes" in entry:
        classes = entry["classes"]
        texts = isinstance(classes, list) and classes
        if not texts or not all(type(each) in (str, int, float) for each in classes):
            yield f"'classes' must be a list of names, in quotes if need be, not {classes!r}"
        elif len({str(each) for each in classes}) < len(classes):
            yield f"'classes' needs a name of its own for each class: {classes}"
    split = entry.get("split", 0.5)
    if type(split) is not float or not 0 < split < 1:
        yield f"'split' must be the share to train on, above 0 and below 1, not {split!r}"
    for key in ("seed", "ignore"):
        value = entry.get(key, 0)
        if type(value) is not int or value < 0:
            yield f"{key!r} must be a whole number from 0, not {value!r}"
    group = entry.get("group", "_")
    if not isinstance(group, str) or not group:
        yield f"'group' must be the text that ends a group's part of file names, not {group!r}"
    for key in ("seed", "group"):
        if key in entry and "split" not in entry:
            yield f"{key!r} is of a 'split', which it lacks"
    colors = entry.get("colors")
    if colors is not None:
        fine = isinstance(colors, list) and len(colors) == len(entry.get("classes", ()))
        if not fine or not all(_is_colour(each) for each in colors):
            yield "'colors' must be one [red, green, blue] from 0 to 255 for each class"
    if entry["kind"] == "yolo":
        if ("yaml" in entry) == ("images" in entry):
            yield "kind yolo needs either 'yaml', the data.yaml, or 'images' and 'classes'"
        if "images" in entry and "classes" not in entry:
            yield "kind yolo needs 'classes' beside 'images'"
        if "yaml" in entry and "classes" in entry:
            yield "'classes' are told by 'yaml'"


def _is_colour(value: Any) -> bool:
    fine = isinstance(value, list) and len(value) == 3
    return fine and all(type(each) is int and 0 <= each <= 255 for each in value)


def _parts(entry: Entry) -> dict[str, _Part]:
    """The data sets of an entry, by name."""
    own = entry["name"]
    parts = KINDS[entry["kind"]].parts(entry)
    if "split" not in entry:
        return {f"{own}_{key}" if key else own: part for key, part in parts.items()}
    whole = next(iter(parts.values()))
    divided = {}
    for side in ("train", "val"):
        load = partial(_side, entry, whole, side)
        divided[f"{own}_{side}"] = _Part(load, whole.metadata)
    return divided


def _side(entry: Entry, whole: _Part, side: str, name: str) -> list[dict]:
    dicts = whole.load(name)
    root = whole.metadata["image_root"]
    files = [os.path.relpath(record["file_name"], root) for record in dicts]
    chosen = training_share(
        [os.path.splitext(file)[0].replace(os.sep, "/") for file in files],
        entry["split"],
        seed=entry.get("seed", 0),
        group=entry.get("group", ""),
        strata=[d["label"] for d in dicts] if entry["kind"] == "class_folders" else None,
    )
    part = [d for d, trained in zip(dicts, chosen, strict=True) if trained == (side == "train")]
    if not part:
        raise DataError(
            f"data set {name!r}: a split by {entry['split']:g} of {len(dicts)} images leaves none"
        )
    return part


def _tell(name: str, **metadata: Any) -> None:
    """Metadata that is known once files were read; Detectron2's own refuses new values."""
    known = MetadataCatalog.get(name)
    for key, value in metadata.items():
        if known.get(key, None) != value:
            if hasattr(known, key):
                delattr(known, key)
            known.set(**{key: value})


def _stuff(entry: Entry, images: str, labels: str) -> dict[str, Any]:
    metadata = {
        "stuff_classes": entry["classes"],
        "image_root": images,
        "sem_seg_root": labels,
        "evaluator_type": "sem_seg",
        "ignore_label": entry.get("ignore", 255),
    }
    if "colors" in entry:
        metadata["stuff_colors"] = [tuple(colour) for colour in entry["colors"]]
    return metadata


def _folder(entry: Entry) -> dict[str, _Part]:
    images, labels = _expanded(entry["images"]), _expanded(entry["labels"])

    def load(name: str) -> list[dict]:
        return labelled_images(name, images, labels)

    return {"": _Part(load, _stuff(entry, images, labels))}


def _coco(entry: Entry) -> dict[str, _Part]:
    images, file = _expanded(entry["images"]), _expanded(entry["json"])

    def load(name: str) -> list[dict]:
        check_file(name)
        dicts = load_coco_json(file, images, name)
        found = MetadataCatalog.get(name).thing_classes
        if found != entry.get("classes", found):
            raise DataError(
                f"data set {name!r}: the categories of {file} are {', '.join(map(repr, found))}, "
                "by their ids, and its 'classes' others"
            )
        return dicts

    metadata = {"image_root": images, "json_file": file, "evaluator_type": "coco"}
    if "split" in entry:
        metadata["part_of_file"] = "yes"  # evaluation must not miss the other images' objects
    return {"": _Part(load, metadata)}


def _voc_parts(entry: Entry, kind: str, make: Callable[[Path, str], _Part]) -> dict[str, _Part]:
    folder = Path(_expanded(entry["path"]))
    if "split" in entry:
        return {"": make(folder, "")}
    # Of a folder that is not there nothing is known; whoever uses it is told so.
    sets = image_sets(folder, kind) if folder.is_dir() else ["train", "val"]
    return {each: make(folder, each) for each in sets} or {"": make(folder, "")}


def _voc(entry: Entry) -> dict[str, _Part]:
    def make(folder: Path, image_set: str) -> _Part:
        def load(name: str) -> list[dict]:
            dicts, classes = read_voc_boxes(name, folder, image_set, entry.get("classes"))
            _tell(name, thing_classes=classes)
            return dicts

        metadata = {"image_root": str(folder / "JPEGImages"), "evaluator_type": "coco"}
        if "classes" in entry:
            metadata["thing_classes"] = entry["classes"]
        return _Part(load, metadata)

    return _voc_parts(entry, "Main", make)


def _voc_masks(entry: Entry) -> dict[str, _Part]:
    def make(folder: Path, image_set: str) -> _Part:
        def load(name: str) -> list[dict]:
            return read_voc_masks(name, folder, image_set)

        labels = str(folder / "SegmentationClass")
        return _Part(load, _stuff(entry, str(folder / "JPEGImages"), labels))

    return _voc_parts(entry, "Segmentation", make)


def _yolo(entry: Entry) -> dict[str, _Part]:
    if "images" in entry:
        images, labels = _expanded(entry["images"]), _expanded(entry.get("labels", ""))

        def load_folder(name: str) -> list[dict]:
            return read_yolo(name, [images], entry["classes"], labels)

        metadata: dict[str, Any] = {"image_root": images, "evaluator_type": "coco"}
        return {"": _Part(load_folder, {**metadata, "thing_classes": entry["classes"]})}
    file = _expanded(entry["yaml"])
    metadata = {"image_root": os.path.dirname(file) or ".", "evaluator_type": "coco"}
    try:
        classes, sets = read_yolo_yaml(file)
        metadata["thing_classes"] = classes
    except DivdrError:  # whoever uses it is told so
        sets = {key: [] for key in ("train", "val")}

    def load(key: str, name: str) -> list[dict]:
        classes, sets = read_yolo_yaml(file)
        if key not in sets:
            raise DataError(f"data set {name!r}: {file} has no key {key!r}")
        _tell(name, thing_classes=classes)
        return read_yolo(name, sets[key], classes)

    return {key: _Part(partial(load, key), metadata) for key in sets}


def _class_folders(entry: Entry) -> dict[str, _Part]:
    root = _expanded(entry["path"])
    metadata: dict[str, Any] = {"image_root": root, "evaluator_type": "classification"}
    if "classes" in entry:
        metadata["classes"] = entry["classes"]
    elif os.path.isdir(root):
        try:
            metadata["classes"] = class_folder_names(entry["name"], root)
        except DataError:  # whoever uses it is told so
            metadata["classes"] = []

    def load(name: str) -> list[dict]:
        classes = class_folder_names(name, root, entry.get("classes"))
        _tell(name, classes=classes)
        return class_folder_images(name, root, classes)

    return {"": _Part(load, metadata)}


KINDS = {
    "folder": _Kind(_folder, ("images", "labels", "classes"), ("ignore", "colors")),
    "coco": _Kind(_coco, ("images", "json")),
    "voc": _Kind(_voc, ("path",)),
    "voc_masks": _Kind(_voc_masks, ("path", "classes"), ("ignore", "colors")),
    "yolo": _Kind(_yolo, (), ("yaml", "images", "labels")),
    "class_folders": _Kind(_class_folders, ("path",)),
}
"""Formats, by the word that an entry names them with."""
