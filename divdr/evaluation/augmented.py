"""Evaluation at several scales, flipped, and in windows: what the model then runs on, and finds.

An image is then several forwards of the model, its parts, each with a cost of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import (
    DatasetMapperTTA,
    GeneralizedRCNN,
    GeneralizedRCNNWithTTA,
    SemanticSegmentor,
)
from fvcore.transforms import HFlipTransform
from torch import Tensor, nn

from ..errors import ConfigError
from ..modeling import attached_experts, attached_routing, unwrap
from ..modeling.roi_heads import MixtureROIHeads, box_head_of
from ..modeling.segmentors import segmentation_mixture_of
from ..settings import SlidingWindowSettings

_PARTS = "parts"


def parts_of(item: dict, output: dict) -> list[tuple[dict, dict]]:
    """What a model ran on for an image: (input, output) of each forward, or its own alone."""
    return output.get(_PARTS) or [(item, output)]


def augmented(cfg: CfgNode, model: nn.Module) -> tuple[CfgNode, nn.Module]:
    """What evaluation reads by and runs, as ``TEST.AUG`` and ``TEST.SLIDING_WINDOW`` say.

    Args:
        cfg: the whole configuration.
        model: with what is attached to it; its weights are shared.

    Returns:
        The configuration of the loader, which leaves images as large as they are if they are to be
        seen at several scales, and the model; both unchanged where nothing is asked for.

    Raises:
        ConfigError: the model cannot be evaluated so.
    """
    windows = SlidingWindowSettings.of(cfg.TEST.SLIDING_WINDOW)
    scales = cfg.TEST.AUG.ENABLED
    if not (scales or windows.size):
        return cfg, model
    inner = unwrap(model)
    what = "TEST.AUG" if scales else windows.KEY
    if attached_experts(model) is not None or segmentation_mixture_of(model) is not None:
        raise ConfigError(f"{what} is not for models that choose experts: their cost is of one run")
    runs: nn.Module
    if isinstance(inner, SemanticSegmentor):
        runs = AugmentedSegmentor(inner, DatasetMapperTTA(cfg) if scales else None, windows)
    elif isinstance(inner, GeneralizedRCNN) and not windows.size:
        _check_detector(cfg, inner)
        runs = AugmentedDetector(cfg, inner)
    else:
        kinds = "SemanticSegmentor" if windows.size else "SemanticSegmentor and GeneralizedRCNN"
        raise ConfigError(f"{what} is for {kinds}, not for {type(inner).__name__}")
    runs.training = model.training  # which evaluation restores
    if not scales:
        return cfg, runs
    whole = cfg.clone()
    whole.defrost()
    whole.INPUT.MIN_SIZE_TEST = 0
    return whole, runs


def _check_detector(cfg: CfgNode, model: nn.Module) -> None:
    if cfg.MODEL.KEYPOINT_ON or cfg.MODEL.LOAD_PROPOSALS:
        raise ConfigError("TEST.AUG works neither for key points nor with proposals from files")
    if isinstance(box_head_of(model), MixtureROIHeads):
        raise ConfigError("TEST.AUG is not for mixtures as box heads: their cost is of one run")


class AugmentedSegmentor(nn.Module):
    """Class probabilities of an image, averaged over scales, flips and windows.

    Each is run on its own. Windows of a scale are put together at that scale, all scales at the
    size of the output. An image that takes one forward has the model's own output.

    Args:
        model: gives ``sem_seg``, (C, height, width) logits.
        views: makes the scales of an image; None: it is seen as it comes.
        windows: size and overlap.
    """

    def __init__(
        self, model: nn.Module, views: DatasetMapperTTA | None, windows: SlidingWindowSettings
    ) -> None:
        super().__init__()
        self.model = model
        self._views = views
        self._window = windows

    @torch.no_grad()
    def forward(self, batched_inputs: Sequence[dict]) -> list[dict[str, Any]]:
        """Of each image ``sem_seg``, (C, height, width): probabilities, or the logits of its only
        forward; its ``parts``, if there are several; and, for a routed model, the ``routing`` of
        the first.

        Args:
            batched_inputs: Detectron2's dicts; where scales are made, with the image's own pixels.
        """
        return [self._image(item) for item in batched_inputs]

    def _image(self, item: dict) -> dict[str, Any]:
        parts: list[tuple[dict, dict]] = []
        total: Tensor | None = None
        views = self._scaled(item)
        for view, flipped in views:
            boxes = _boxes(view["image"].shape[-2:], self._window)
            if len(views) == len(boxes) == 1:
                return self.model([view])[0]
            if len(boxes) == 1:
                scores = self._run(view, parts)
            else:
                scores = self._in_windows(view, boxes, parts)
            if flipped:
                scores = scores.flip(-1)
            total = scores if total is None else total + scores
        assert total is not None
        return {**parts[0][1], "sem_seg": total / len(views), _PARTS: parts}

    def _scaled(self, item: dict) -> list[tuple[dict, bool]]:
        """The image at each scale, and whether it is flipped."""
        if self._views is None:
            return [(item, False)]
        size = tuple(item["image"].shape[-2:])
        whole = {**item, "height": item.get("height", size[0]), "width": item.get("width", size[1])}
        found = []
        for view in self._views(whole):
            made = view.pop("transforms").transforms
            found.append((view, any(isinstance(each, HFlipTransform) for each in made)))
        return found

    def _run(self, item: dict, parts: list[tuple[dict, dict]]) -> Tensor:
        output = self.model([item])[0]
        scores = output.pop("sem_seg").softmax(0)
        parts.append((item, output))
        return scores

    def _in_windows(
        self, view: dict, boxes: list[tuple[slice, slice]], parts: list[tuple[dict, dict]]
    ) -> Tensor:
        pixels = view["image"]
        total: Tensor | None = None
        for rows, columns in boxes:
            piece = pixels[:, rows, columns]
            size = {"height": piece.shape[1], "width": piece.shape[2]}
            scores = self._run({**view, "image": piece, **size}, parts)
            if total is None:
                total = scores.new_zeros(len(scores), *pixels.shape[-2:])
                seen = scores.new_zeros(pixels.shape[-2:])
            total[:, rows, columns] += scores
            seen[rows, columns] += 1
        assert total is not None
        total /= seen
        wanted = (view.get("height", pixels.shape[1]), view.get("width", pixels.shape[2]))
        if wanted == tuple(pixels.shape[-2:]):
            return total
        return F.interpolate(total[None], wanted, mode="bilinear", align_corners=False)[0]


class AugmentedDetector(GeneralizedRCNNWithTTA):
    """Detectron2's detector at several scales, which says what ran for each image.

    Each scale is run on its own, and with masks once more for the masks of the boxes that were
    found: both count.

    Args:
        cfg: the whole configuration.
        model: the detector.
    """

    def __init__(self, cfg: CfgNode, model: GeneralizedRCNN) -> None:
        super().__init__(cfg, model, batch_size=1)
        self._ran: list[tuple[dict, dict]] = []

    def _inference_one_image(self, input: dict) -> dict[str, Any]:
        self._ran = []
        output = super()._inference_one_image(input)
        return {**self._ran[0][1], **output, _PARTS: self._ran}

    def _batch_inference(
        self, batched_inputs: list[dict], detected_instances: list | None = None
    ) -> list:
        routing = attached_routing(self.model)
        outputs = []
        for number, item in enumerate(batched_inputs):
            boxes = None if detected_instances is None else [detected_instances[number]]
            outputs += super()._batch_inference([item], boxes)
            record = None if routing is None else routing.backbone.routing
            ran = {} if record is None else {"routing": record.detach()[0]}
            self._ran.append(({"image": item["image"]}, ran))
        return outputs


def _boxes(size: Sequence[int], windows: SlidingWindowSettings) -> list[tuple[slice, slice]]:
    """Rows and columns of the windows of an image, from the top left."""
    window = windows.size or tuple(size)
    vertical, horizontal = (
        [slice(start, min(start + side, length)) for start in starts(length, side, windows.overlap)]
        for length, side in zip(size, window, strict=True)
    )
    return [(rows, columns) for rows in vertical for columns in horizontal]


def starts(length: int, side: int, overlap: float) -> list[int]:
    """Where windows begin: as few, evenly spread, as overlap by at least a share of their side.

    Args:
        length: of the image, in pixels.
        side: of a window, in pixels.
        overlap: share of the side, from 0 to below 1.
    """
    if length <= side:
        return [0]
    step = max(1, math.floor(side * (1 - overlap)))
    gaps = math.ceil((length - side) / step)
    return [number * (length - side) // gaps for number in range(gaps + 1)]
