"""Pascal VOC's folders: boxes of ``Annotations``, masks of ``SegmentationClass``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

from detectron2.structures import BoxMode

from ..errors import DataError
from ..image_files import image_files, image_size

SETS = ("train", "val", "trainval", "test")
"""Of ``ImageSets``; others in there are of one class each."""

_TOLD = 5  # problems of one data set


class _Object(NamedTuple):
    name: str
    box: tuple[float, float, float, float]  # left, top, right, bottom


class _File(NamedTuple):
    """One xml file.

    Attributes:
        size: (rows, columns); None where it tells none.
    """

    size: tuple[int, int] | None
    objects: list[_Object]
    problems: list[str]


def image_sets(folder: Path, kind: str) -> list[str]:
    """Which of :data:`SETS` a folder lists images of.

    Args:
        folder: holds "ImageSets".
        kind: "Main" or "Segmentation".
    """
    return [each for each in SETS if (folder / "ImageSets" / kind / f"{each}.txt").is_file()]


def read_voc_boxes(
    name: str, folder: Path, image_set: str = "", classes: Sequence[str] | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Dicts of images with boxes, and the names of the classes.

    Objects that are marked as difficult are boxes like others, as in Detectron2's reader.

    Args:
        name: of the data set, for messages.
        folder: holds "Annotations" and "JPEGImages".
        image_set: one of :data:`SETS`, of "ImageSets/Main"; "": every file of "Annotations".
        classes: in the order of the numbers; None: all that the folder's annotations name, sorted.

    Raises:
        DataError: files are missing, or an annotation is not as it must be; the messages name file
            and line.
    """
    annotations = folder / "Annotations"
    found = sorted(annotations.glob("*.xml")) if annotations.is_dir() else []
    if not found:
        raise DataError(f"data set {name!r}: {annotations} holds no .xml file of boxes")
    files = {file.stem: file for file in found}
    wanted = _listed(name, folder, "Main", image_set) if image_set else list(files)
    lost = [each for each in wanted if each not in files]
    if lost:
        raise DataError(
            f"data set {name!r}: {annotations / lost[0]}.xml does not exist, and "
            f"ImageSets/Main/{image_set}.txt lists it"
            + (f", as {len(lost) - 1} others" if len(lost) > 1 else "")
        )
    # Classes must not depend on which part of the folder is read.
    read = dict.fromkeys(wanted if classes is not None else files)
    with ThreadPoolExecutor(8) as pool:
        parsed = dict(zip(read, pool.map(_parsed, map(files.__getitem__, read)), strict=True))
    problems = [text for stem in wanted for text in parsed[stem].problems]
    if classes is None:
        names = sorted({each.name for file in parsed.values() for each in file.objects})
    else:
        names = list(classes)
    numbers = {each: number for number, each in enumerate(names)}
    for stem in wanted:
        others = {o.name for o in parsed[stem].objects} - {*names}
        problems += [
            f"{files[stem]}: an object is of class {other!r}, which is not among the classes of "
            f"data set {name!r}"
            for other in sorted(others)
        ]
    if problems:
        raise DataError(*problems[:_TOLD])
    images = _images(name, folder, wanted)
    dicts = []
    for stem in wanted:
        file = parsed[stem]
        rows, columns = file.size or image_size(images[stem])[:2]
        dicts.append(
            {
                "file_name": str(images[stem]),
                "image_id": stem,
                "height": rows,
                "width": columns,
                "annotations": [
                    {
                        "bbox": list(each.box),
                        "bbox_mode": BoxMode.XYXY_ABS,
                        "category_id": numbers[each.name],
                    }
                    for each in file.objects
                ],
            }
        )
    return dicts, names


def read_voc_masks(name: str, folder: Path, image_set: str = "") -> list[dict[str, Any]]:
    """Dicts of images with label files.

    Args:
        name: of the data set, for messages.
        folder: holds "SegmentationClass" and "JPEGImages".
        image_set: one of :data:`SETS`, of "ImageSets/Segmentation"; "": every label file.

    Raises:
        DataError: files are missing.
    """
    labels = folder / "SegmentationClass"
    found = {file.stem: file for file in image_files(labels)} if labels.is_dir() else {}
    if not found:
        raise DataError(f"data set {name!r}: {labels} holds no label file")
    wanted = _listed(name, folder, "Segmentation", image_set) if image_set else sorted(found)
    lost = [each for each in wanted if each not in found]
    if lost:
        raise DataError(
            f"data set {name!r}: {labels} holds no label of image {lost[0]!r}, which "
            f"ImageSets/Segmentation/{image_set}.txt lists"
            + (f", nor of {len(lost) - 1} others" if len(lost) > 1 else "")
        )
    images = _images(name, folder, wanted)
    return [
        {"file_name": str(images[stem]), "sem_seg_file_name": str(found[stem])} for stem in wanted
    ]


def _listed(name: str, folder: Path, kind: str, image_set: str) -> list[str]:
    path = folder / "ImageSets" / kind / f"{image_set}.txt"
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data set {name!r}: {path} cannot be read ({error})") from None
    # Some lists have a second column, whether a class is shown.
    listed = list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))
    if not listed:
        raise DataError(f"data set {name!r}: {path} lists no image")
    return listed


def _images(name: str, folder: Path, stems: Sequence[str]) -> dict[str, Path]:
    where = folder / "JPEGImages"
    found = {file.stem: file for file in image_files(where)} if where.is_dir() else {}
    missing = [stem for stem in stems if stem not in found]
    if missing:
        raise DataError(
            f"data set {name!r}: {where} holds no image {missing[0]!r}"
            + (f", nor {len(missing) - 1} others" if len(missing) > 1 else "")
        )
    return found


def _tree(text: bytes) -> ElementTree.Element:
    """Elements that know the line they begin in, as ElementTree's own do not.

    Raises:
        ExpatError: it is not xml.
    """
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()

    def start(tag: str, attributes: dict[str, str]) -> None:
        builder.start(tag, {**attributes, "_line": str(parser.CurrentLineNumber)})

    parser.StartElementHandler = start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.Parse(text, True)
    return builder.close()


def _parsed(path: Path) -> _File:
    try:
        root = _tree(path.read_bytes())
    except expat.ExpatError as error:
        cause = expat.ErrorString(error.code)
        return _File(None, [], [f"{path}, line {error.lineno}: the file is not xml ({cause})"])
    except OSError as error:
        return _File(None, [], [f"{path} cannot be read ({error.strerror})"])
    if root.tag != "annotation":
        return _File(None, [], [f"{path}, line 1: <{root.tag}> stands where <annotation> must"])
    problems: list[str] = []
    objects = []
    for element in root.iter("object"):
        try:
            objects.append(_object(element))
        except ValueError as error:
            problems.append(f"{path}, line {error}")
    size = tuple(_whole(root.find(f"size/{each}")) for each in ("height", "width"))
    known = (size[0], size[1]) if all(size) else None
    return _File(known, objects, problems)


def _object(element: ElementTree.Element) -> _Object:
    """Raises ValueError: line and what is wrong there."""
    line = element.get("_line")
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError(f"{line}: <object> has no <name>")
    box = element.find("bndbox")
    if box is None:
        raise ValueError(f"{line}: <object> {name!r} has no <bndbox>")
    left, top, right, bottom = _corners(name, box)
    if right < left or bottom < top:
        raise ValueError(
            f"{box.get('_line')}: the box of {name!r} ends before it begins: xmin {left:g}, "
            f"ymin {top:g}, xmax {right:g}, ymax {bottom:g}"
        )
    # Pixels are counted from 1, the last one included: 1 to W is the whole width, 0 to W in space.
    # Files that count from 0 begin at the edge all the same.
    return _Object(name, (max(0.0, left - 1), max(0.0, top - 1), right, bottom))


def _corners(name: str, box: ElementTree.Element) -> Iterator[float]:
    for tag in ("xmin", "ymin", "xmax", "ymax"):
        found = box.find(tag)
        if found is None:
            raise ValueError(f"{box.get('_line')}: <bndbox> of {name!r} has no <{tag}>")
        try:
            value = float(found.text or "")
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            text = (found.text or "").strip()
            raise ValueError(f"{found.get('_line')}: <{tag}> of {name!r} is {text!r}, no number")
        yield value


def _whole(element: ElementTree.Element | None) -> int:
    """A number of pixels, 0 where there is none."""
    try:
        return max(0, int(float(element.text or ""))) if element is not None else 0
    except (ValueError, OverflowError):
        return 0
