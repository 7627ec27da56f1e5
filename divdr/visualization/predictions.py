"""What a model found, or what is true, drawn over the image, with a legend of the classes below."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.structures import BoxMode
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask
from scipy.ndimage import binary_erosion

from ..image_files import read_image
from .overlay import overlay
from .parts import class_colours, default_palette

LARGEST = 1024 * 2048
"""Pixels of a picture, at most: drawing takes time and memory with every one of them."""

CONFIDENCE = 0.5
"""Least score of a detection that pictures show."""

_SMALLEST = 640  # pixels of a picture's longer side: lines and words would hide a smaller image
_LABELLED = 12  # boxes that are labelled, at most; of more the colours tell the classes
_CROWD = 50  # boxes, more of which are drawn as thin as can be
_FILL = 0.4  # weight of a mask's colour
_SHOWN = 5
_DPI = 100

Colour = tuple[int, int, int]


def drawing_size(rows: int, columns: int, largest: int = LARGEST) -> tuple[int, int]:
    """(rows, columns) of the picture for an image: its own, or smaller ones in proportion."""
    scale = min(1.0, math.sqrt(largest / (rows * columns)))
    return max(1, int(rows * scale)), max(1, int(columns * scale))


def reduced(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image (H, W, 3) uint8 at a size (rows, columns) that is not larger."""
    if image.shape[:2] == tuple(size):
        return image
    rows, columns = size
    return np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BOX))


@dataclass(frozen=True)
class Drawing:
    """An image with what is in it.

    Attributes:
        picture: (H', W', 3) uint8; of a small image an enlarged one.
        legend: colours by name of class, as far as they are in the picture.
    """

    picture: np.ndarray
    legend: Mapping[str, Colour]

    def with_legend(self) -> np.ndarray:
        """The picture, and below it the names of its colours."""
        width = self.picture.shape[1]
        if not self.legend:
            return self.picture
        font = _font(width)
        edge = int(font.size)
        places, left, top = [], edge // 2, edge // 2
        for name in self.legend:
            needed = int(1.5 * edge + font.getlength(name) + edge)
            if left + needed > width and left > edge // 2:
                left, top = edge // 2, top + int(1.6 * edge)
            places.append((left, top))
            left += needed
        strip = Image.new("RGB", (width, top + int(1.6 * edge)), "white")
        pen = ImageDraw.Draw(strip)
        for (name, colour), (x, y) in zip(self.legend.items(), places, strict=True):
            pen.rectangle((x, y + edge // 8, x + edge, y + edge), fill=colour, outline="#666666")
            pen.text((x + 1.5 * edge, y), name, fill="#222222", font=font)
        return np.concatenate([self.picture, np.asarray(strip)])


@dataclass(frozen=True)
class Thing:
    """An instance.

    Attributes:
        category: number of its class.
        box: (left, top, right, bottom), pixels.
        score: 0 to 1; None of a true one.
        mask: (H, W) bool; None without.
        keypoints: (P, 3): column, row, and above 0 if it is to be seen; None without.
    """

    category: int
    box: tuple[float, ...]
    score: float | None = None
    mask: np.ndarray | None = field(default=None, repr=False)
    keypoints: np.ndarray | None = field(default=None, repr=False)


def draw_output(
    image: np.ndarray, output: dict[str, Any], metadata: Metadata, *, confidence: float = 0.0
) -> Drawing:
    """Draw everything that a model found.

    Args:
        image: (H, W, 3) uint8, RGB.
        output: of a Detectron2 model: "sem_seg", "panoptic_seg", "instances", or several, of the
            image's size.
        metadata: names and colours of classes.
        confidence: instances of a lower score are left out.
    """
    if "panoptic_seg" in output:
        segments, info = output["panoptic_seg"]
        return draw_segments(image, segments.cpu().numpy(), info, metadata)
    legend: dict[str, Colour] = {}
    if "sem_seg" in output:
        labels = semantic_labels(output).numpy()
        names = list(metadata.get("stuff_classes") or [])
        palette = stuff_palette(metadata, max(len(names), len(output["sem_seg"])))
        image = overlay(image, labels, palette)
        numbers, sizes = np.unique(labels, return_counts=True)
        for number in numbers[np.argsort(-sizes, kind="stable")]:
            legend[_name(names, int(number))] = _colour(palette, int(number))
    if "instances" not in output:
        return Drawing(_enlarged(image), legend)
    drawn = draw_things(image, _found(output["instances"], confidence), metadata)
    return Drawing(drawn.picture, {**legend, **drawn.legend})


def draw_truth(image: np.ndarray, item: Mapping[str, Any], metadata: Metadata) -> Drawing | None:
    """Draw what a data set says of an image, crowds left out; None where it says nothing.

    Args:
        image: (H, W, 3) uint8, RGB, of the image's size or smaller.
        item: Detectron2's dict: "annotations", or "pan_seg_file_name" and "segments_info".
        metadata: names and colours of classes.
    """
    if "pan_seg_file_name" in item:
        colours = read_image(item["pan_seg_file_name"], "RGB").astype(np.int64)
        segments = _resized((colours * (1, 256, 256**2)).sum(2), image.shape[:2])
        return draw_segments(image, segments, item["segments_info"], metadata)
    if "annotations" not in item:
        return None
    rows, columns = image.shape[:2]
    height, width = item.get("height", rows), item.get("width", columns)
    scale = np.array([columns / width, rows / height])
    things = []
    for entry in item["annotations"]:
        if entry.get("iscrowd"):
            continue
        box = BoxMode.convert(entry["bbox"], entry["bbox_mode"], BoxMode.XYXY_ABS)
        points = entry.get("keypoints")
        things.append(
            Thing(
                entry["category_id"],
                tuple(np.array(box) * np.tile(scale, 2)),
                mask=_mask(entry.get("segmentation"), (height, width), (rows, columns)),
                keypoints=points and np.reshape(points, (-1, 3)) * (*scale, 1),
            )
        )
    return draw_things(image, things, metadata)


def draw_things(image: np.ndarray, things: Sequence[Thing], metadata: Metadata) -> Drawing:
    """Draw instances in the colours of their classes: masks, thin boxes, and short labels where
    these are few, larger than their label, and clear of the others' labels.
    """
    names = list(metadata.get("thing_classes") or [])
    palette = _thing_palette(metadata, max([len(names), *(1 + each.category for each in things)]))
    picture = _enlarged(image)
    scale = picture.shape[1] / image.shape[1]
    rows, columns = picture.shape[:2]
    thin = max(1, round(max(rows, columns) / _SMALLEST))
    for thing in sorted(things, key=lambda each: -_area(each.box)):
        if thing.mask is not None:
            mask = _resized(thing.mask, (rows, columns))
            colour = palette[thing.category]
            picture[mask] = np.round((1 - _FILL) * picture[mask] + _FILL * colour)
            picture[mask & ~binary_erosion(mask, iterations=thin)] = colour
    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas)
    for thing in things:
        colour = _colour(palette, thing.category)
        # Where a mask shows the outline, the box stands back.
        width = thin if thing.mask is not None or len(things) > _CROWD else 2 * thin
        pen.rectangle([scale * side for side in thing.box], outline=colour, width=width)
        if thing.keypoints is not None:
            _draw_keypoints(pen, thing.keypoints * (scale, scale, 1), metadata, 2 * thin)
    if len(things) <= _LABELLED:
        _label(pen, things, [_name(names, each.category) for each in things], palette, scale)
    counts: dict[int, int] = {}
    for thing in things:
        counts[thing.category] = counts.get(thing.category, 0) + 1
    legend = {
        _name(names, c): _colour(palette, c) for c in sorted(counts, key=lambda c: (-counts[c], c))
    }
    return Drawing(np.asarray(canvas), legend)


def draw_segments(
    image: np.ndarray, segments: np.ndarray, info: Sequence[Mapping], metadata: Metadata
) -> Drawing:
    """Draw a panoptic segmentation: colours of classes, and white lines around every segment.

    Args:
        image: (H, W, 3) uint8.
        segments: (H, W) number of each pixel's segment.
        info: of each segment "id", "isthing" and "category_id", Detectron2's way.
        metadata: names and colours of classes.
    """
    things = list(metadata.get("thing_classes") or [])
    stuff = list(metadata.get("stuff_classes") or [])
    most = 1 + max((each["category_id"] for each in info), default=0)
    thing_colours = _thing_palette(metadata, max(most, len(things)))
    stuff_colours = stuff_palette(metadata, max(most, len(stuff)))
    labels = np.full(segments.shape, -1)
    palette, legend = np.zeros((len(info), 3), np.uint8), {}
    for number, each in enumerate(info):
        labels[segments == each["id"]] = number
        thing = each.get("isthing", True)
        names, colours = (things, thing_colours) if thing else (stuff, stuff_colours)
        palette[number] = colours[each["category_id"]]
        legend[_name(names, each["category_id"])] = _colour(palette, number)
    picture = _enlarged(overlay(image, labels, palette))
    large = _resized(labels, picture.shape[:2])
    edge = np.zeros(large.shape, bool)
    edge[1:] |= large[1:] != large[:-1]
    edge[:, 1:] |= large[:, 1:] != large[:, :-1]
    picture[edge] = 255
    return Drawing(picture, legend)


def prediction_picture(
    image: np.ndarray, output: dict[str, Any], metadata: Metadata, *, confidence: float = 0.0
) -> np.ndarray:
    """The image with everything that the model found and a legend, or with its class below it.

    Args:
        image: (H, W, 3) uint8, RGB.
        output: as of :func:`draw_output`; or of a classifier: "scores".
        metadata: names and colours of classes.
        confidence: instances of a lower score are left out.

    Returns:
        (H', W', 3) uint8, RGB.
    """
    if "scores" in output:
        return _class_picture(image, best_classes(output, metadata.classes))
    return draw_output(image, output, metadata, confidence=confidence).with_legend()


def semantic_labels(output: dict[str, Any]) -> torch.Tensor:
    """(H, W) class numbers of a semantic segmentation output."""
    return output["sem_seg"].argmax(dim=0).cpu()


def stuff_palette(metadata: Metadata, classes: int) -> np.ndarray:
    """(classes, 3) uint8 colours of semantic classes."""
    return _palette(class_colours(metadata), classes)


def _thing_palette(metadata: Metadata, classes: int) -> np.ndarray:
    return _palette(metadata.get("thing_colors"), classes)


def _palette(known: Sequence[Sequence[int]] | None, classes: int) -> np.ndarray:
    colours = default_palette(classes)
    if known:
        colours[: len(known)] = np.array(known, np.uint8)[:classes]
    return colours


def best_classes(
    output: dict[str, Any], names: Sequence[str], count: int = _SHOWN
) -> list[tuple[str, float]]:
    """Names and scores, from 0 to 1, of the classes that a classifier finds likeliest."""
    # A task of a model of several can have fewer classes than there are scores.
    count = min(count, len(output["scores"]), len(names))
    scores, classes = output["scores"].float().cpu().topk(count)
    return [
        (_name(names, number), score)
        for number, score in zip(classes.tolist(), scores.tolist(), strict=True)
    ]


def _class_picture(image: np.ndarray, classes: Sequence[tuple[str, float]]) -> np.ndarray:
    rows, columns = image.shape[:2]
    width = 5.0
    height = width * float(np.clip(rows / columns, 0.2, 2.0))
    figure = Figure(figsize=(width, height + 0.7), dpi=_DPI)
    canvas = FigureCanvasAgg(figure)
    axis = figure.add_axes((0, 0.7 / (height + 0.7), 1, height / (height + 0.7)))
    axis.set_axis_off()
    axis.imshow(image, interpolation="nearest" if max(rows, columns) < _DPI * width else None)
    (name, score), *others = classes
    place = 0.7 / (height + 0.7)
    figure.text(0.02, 0.62 * place, f"{name} ({score:.2f})", fontsize=12, fontweight="bold")
    rest = ", ".join(f"{name} {score:.2f}" for name, score in others)
    figure.text(0.02, 0.2 * place, rest, fontsize=8, color="0.4")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def _found(instances: Any, confidence: float) -> list[Thing]:
    """Detectron2's instances, best first."""
    instances = instances.to("cpu")
    kept = instances[instances.scores >= confidence]
    kept = kept[kept.scores.argsort(descending=True)]
    masks = kept.pred_masks.numpy() if kept.has("pred_masks") else [None] * len(kept)
    points = kept.pred_keypoints.numpy() if kept.has("pred_keypoints") else [None] * len(kept)
    return [
        Thing(category, tuple(box), score, mask, keypoints)
        for category, box, score, mask, keypoints in zip(
            kept.pred_classes.tolist(),
            kept.pred_boxes.tensor.tolist(),
            kept.scores.tolist(),
            masks,
            points,
            strict=True,
        )
    ]


def _mask(segmentation: Any, whole: tuple[int, int], size: tuple[int, int]) -> np.ndarray | None:
    """(rows, columns) bool at a size, of COCO's polygons or runs for an image of another."""
    if not segmentation:
        return None
    if isinstance(segmentation, list):
        parts = coco_mask.frPyObjects(segmentation, *whole)
        return _resized(coco_mask.decode(coco_mask.merge(parts)).astype(bool), size)
    if isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, *whole)
    return _resized(coco_mask.decode(segmentation).astype(bool), size)


def _resized(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Labels (H, W) at another size, each pixel the nearest one's."""
    if labels.shape == tuple(size):
        return labels
    rows, columns = (np.arange(n) * have // n for n, have in zip(size, labels.shape, strict=True))
    return labels[np.ix_(rows, columns)]


def _enlarged(image: np.ndarray) -> np.ndarray:
    """A copy whose longer side has at least so many pixels that lines and words are thin in it."""
    rows, columns = image.shape[:2]
    scale = _SMALLEST / max(rows, columns)
    if scale <= 1:
        return image.copy()
    size = max(1, round(scale * columns)), max(1, round(scale * rows))
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _label(
    pen: ImageDraw.ImageDraw,
    things: Sequence[Thing],
    names: Sequence[str],
    palette: np.ndarray,
    scale: float,
) -> None:
    width = pen.im.size[0]
    font = _font(width)
    taken: list[tuple[float, ...]] = []
    for thing, name in zip(things, names, strict=True):
        text = name if thing.score is None else f"{name} {100 * thing.score:.0f}"
        left, top, right, bottom = (scale * side for side in thing.box)
        wide, high = font.getlength(text) + 4, font.size + 3
        if right - left < wide or bottom - top < 2 * high:
            continue
        place = (left, top - high, left + wide, top)  # above the box, or in it at the edge
        if top < high:
            place = (left, top, left + wide, top + high)
        if any(_overlap(place, other) for other in taken):
            continue
        taken.append(place)
        colour = _colour(palette, thing.category)
        pen.rectangle(place, fill=colour)
        dark = sum(w * c for w, c in zip((0.3, 0.59, 0.11), colour, strict=True)) < 140
        pen.text((place[0] + 2, place[1]), text, fill="white" if dark else "black", font=font)


def _draw_keypoints(
    pen: ImageDraw.ImageDraw, points: np.ndarray, metadata: Metadata, radius: int
) -> None:
    seen = points[:, 2] > 0.05
    numbers = {name: n for n, name in enumerate(metadata.get("keypoint_names") or [])}
    for first, second, colour in metadata.get("keypoint_connection_rules") or []:
        a, b = numbers[first], numbers[second]
        if seen[a] and seen[b]:
            ends = [*points[a, :2], *points[b, :2]]
            pen.line(ends, fill=tuple(int(c) for c in colour), width=radius)
    for x, y in points[seen, :2]:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill="#ffffff")


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _font(width: int) -> ImageFont.FreeTypeFont:
    """In proportion to a picture's width, legible where that is narrow."""
    return ImageFont.truetype(findfont("DejaVu Sans"), max(13, round(width / 50)))


def _name(names: Sequence[str], number: int) -> str:
    return names[number] if number < len(names) else str(number)


def _colour(palette: np.ndarray, number: int) -> Colour:
    red, green, blue = (int(c) for c in palette[number])
    return red, green, blue
