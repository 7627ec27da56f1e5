"""Which experts the images, or boxes, of each class get, and which classes each expert gets.

Figure 4 of Ramachandran & Le, "Diversity and Depth in Per-Example Routing Models". C classes, E
experts of one decision, G true boxes of an image and P proposals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, pairwise_iou
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tabulate import tabulate
from torch import Tensor

from ..data import build_test_loader
from ..engine.classifier_analysis import trained_classifier
from ..engine.execution_modes import load_trained
from ..errors import ConfigError
from ..modeling.classifiers import per_example_of
from ..modeling.roi_heads import MixtureROIHeads, box_head_of
from .parts import Picture, Section, Table, TableEntry, colour, count

_LISTED = 40  # classes of a table, at most


@dataclass(frozen=True)
class ExpertChoices:
    """How often one decision chose each expert for images of each class.

    Attributes:
        decision: its name.
        experts: E names.
        classes: C names.
        counts: (C, E) images of the class for which the expert ran.
        unit: what is counted: "images", or "boxes".
    """

    decision: str
    experts: list[str]
    classes: list[str]
    counts: np.ndarray
    unit: str = "images"

    def per_class(self) -> np.ndarray:
        """(C, E) share of each expert in what ran for a class; zeros where nothing did."""
        return _shares(self.counts)

    def per_expert(self) -> np.ndarray:
        """(E, C) share of each class in what an expert ran for; zeros without any."""
        return _shares(self.counts.T)

    def table(self) -> str:
        """Shares per class, and under them how many images or boxes each expert ran for."""
        rows = [[name, *row] for name, row in zip(self.classes, self.per_class(), strict=True)]
        total = [self.unit, *map(int, self.counts.sum(0))]
        return tabulate([*rows, total], headers=(self.decision, *self.experts), floatfmt=".2f")


@torch.no_grad()
def expert_choices(cfg: CfgNode, decision: int = -1) -> ExpertChoices:
    """What a trained model chooses for the images of ``DATASETS.TEST``, or for their boxes.

    Systems other than per-example routing make one decision, in which an image may choose no expert
    or several. Of a detector whose box head is a mixture each proposal counts, by the class of the
    true box that it lies on (``MODEL.ROI_HEADS.IOU_THRESHOLDS``), or as "background".

    Args:
        cfg: of a trained classifier, or of a detector with a mixture as its box head.
        decision: its place among the model's, from 0; negative ones count from the last.

    Raises:
        ConfigError: the model makes no such decision, or there are several test sets, whose classes
            differ.
    """
    if box_mixture(cfg):
        if decision not in (0, -1):
            raise ConfigError(f"a box head makes one decision, 0, and not {decision}")
        return _box_choices(cfg)
    model, _ = trained_classifier(cfg)
    network, (name, classes) = per_example_of(model), only_test_set(cfg)
    count = 1 if network is None else len(network.decisions)
    if not -count <= decision < count:
        raise ConfigError(f"the model's decisions are 0 to {count - 1}, and not {decision}")
    ran, labels = [], []
    for inputs in build_test_loader(cfg, [name]):
        ran += [output["ran"].cpu() for output in model(inputs)]
        labels += [item["label"] for item in inputs]
    found = torch.stack(ran).numpy()
    if network is None:
        where, experts = "experts", [f"expert {number}" for number in range(found.shape[1])]
    else:
        chosen = network.decisions[decision]
        where, experts, found = chosen.name, list(chosen.experts), found[:, chosen.columns]
    counts = np.zeros((len(classes), len(experts)), np.int64)
    np.add.at(counts, labels, found)
    if len(set(experts)) < len(experts):  # of one kind: numbers tell them apart
        experts = [f"{name} {number}" for number, name in enumerate(experts, start=1)]
    return ExpertChoices(where, experts, classes, counts)


def box_mixture(cfg: CfgNode) -> bool:
    """Whether a configuration is of a detector whose box head is a mixture."""
    detects = cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
    return detects and MixtureROIHeads.__name__ == cfg.MODEL.ROI_HEADS.NAME


def _box_choices(cfg: CfgNode) -> ExpertChoices:
    model = load_trained(cfg)
    heads, (name, classes) = box_head_of(model), only_test_set(cfg)
    assert isinstance(heads, MixtureROIHeads)
    truth = {record["file_name"]: record for record in DatasetCatalog.get(name)}
    pooled: list[list[Boxes]] = []
    watch = heads.box_pooler.register_forward_hook(lambda m, args, out: pooled.append(args[1]))
    counts: np.ndarray | None = None
    try:
        for inputs in build_test_loader(cfg, [name]):
            model(inputs)
            found = [
                proposal_classes(
                    boxes, *true_boxes(truth[item["file_name"]], item), heads.proposal_matcher
                )
                for boxes, item in zip(pooled.pop(), inputs, strict=True)
            ]
            assert heads.ran is not None
            own = count_boxes(heads.ran, torch.cat(found), len(classes))
            counts = own if counts is None else counts + own
    finally:
        watch.remove()
    if counts is None:
        raise ConfigError(f"data set {name} has no images")
    experts = [f"expert {number}" for number in range(counts.shape[1])]
    return ExpertChoices("box head", experts, [*classes, "background"], counts, "boxes")


def true_boxes(record: Mapping[str, Any], item: Mapping[str, Any]) -> tuple[Boxes, Tensor]:
    """Boxes (G, 4) of an image as the model sees it, and their classes (G,); no crowds.

    Args:
        record: of the data set, in Detectron2's format, with boxes in the image's own pixels.
        item: what the model gets: "image" (3, rows, columns), resized.
    """
    own = [a for a in record.get("annotations", ()) if not a.get("iscrowd")]
    rows, columns = item["image"].shape[-2:]
    corners = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in own]
    boxes = Boxes(torch.tensor(corners, dtype=torch.float32).view(-1, 4))
    boxes.scale(columns / item["width"], rows / item["height"])
    return boxes, torch.tensor([a["category_id"] for a in own], dtype=torch.long)


def proposal_classes(
    proposals: Boxes, boxes: Boxes, classes: Tensor, matcher: Callable[[Tensor], Any]
) -> Tensor:
    """Class (P,) of the true box that each proposal lies on; −1 on none.

    Args:
        proposals: (P, 4).
        boxes: (G, 4), on any device.
        classes: (G,) of the true boxes.
        matcher: Detectron2's, from overlaps (G, P).
    """
    if not len(boxes):
        return torch.full((len(proposals),), -1)
    matched, labels = matcher(pairwise_iou(boxes.to(proposals.device), proposals))
    return torch.where(labels.cpu() == 1, classes[matched.cpu()], -1)


def count_boxes(ran: Tensor, classes: Tensor, num_classes: int) -> np.ndarray:
    """(C + 1, E) proposals of each class, and of none, for which each expert ran.

    Args:
        ran: (P, E) bool.
        classes: (P,); −1 for background, the last row.
        num_classes: C.
    """
    counts = np.zeros((num_classes + 1, ran.shape[1]), np.int64)
    np.add.at(counts, classes.cpu().numpy(), ran.cpu().numpy())
    return counts


def only_test_set(cfg: CfgNode) -> tuple[str, list[str]]:
    """Name and classes of ``DATASETS.TEST``.

    Raises:
        ConfigError: it has several sets, whose classes differ.
    """
    names = list(cfg.DATASETS.TEST)
    if len(names) != 1:
        raise ConfigError(
            f"the picture is of one test set's classes, and DATASETS.TEST has {len(names)}"
        )
    metadata = MetadataCatalog.get(names[0])
    return names[0], list(metadata.get("classes") or metadata.get("thing_classes") or ())


def expert_choices_figure(choices: ExpertChoices) -> Figure:
    """Figure 4: per class the shares of the experts, and per expert those of the classes."""
    height = 1.4 + 0.3 * max(len(choices.classes), len(choices.experts))
    figure = Figure(figsize=(11, height), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_shares(left, choices.per_class(), choices.classes, choices.experts)
    left.set_title("Experts of each class")
    draw_shares(right, choices.per_expert(), choices.experts, choices.classes)
    right.set_title("Classes of each expert")
    figure.suptitle(choices.decision)
    return figure


def choices_section(choices: Mapping[str, ExpertChoices]) -> Section:
    """Build for each run the picture, and a table of how much of a class each expert got."""
    section = Section("Classes of the experts")
    for run, chosen in choices.items():
        words = (
            f"{run}: experts that ran for {chosen.unit} of each true class, and classes that each "
            "got."
        )
        section.pictures.append(Picture(expert_choices_figure(chosen), words, "wide"))
        if len(chosen.classes) > _LISTED:
            continue
        totals = chosen.counts.sum(0)
        rows = [
            (name, [TableEntry(str(n)) for n in counts])
            for name, counts in zip(chosen.classes, chosen.counts, strict=True)
        ]
        rows.append(("all", [TableEntry(str(n)) for n in totals]))
        caption = f"{run}: {chosen.unit} of each true class for which an expert ran."
        idle = int((totals == 0).sum())
        if idle:
            caption += f" {count(idle, 'expert')} ran for none."
        section.tables.append(Table(caption, [run, *chosen.experts], rows))
    return section


def draw_shares(axes: Axes, shares: np.ndarray, rows: Sequence[str], parts: Sequence[str]) -> None:
    """A bar a row, cut into parts.

    Args:
        axes: to draw into.
        shares: (rows, parts), each 0 to 1.
        rows: names.
        parts: names.
    """
    places, before = np.arange(len(rows)), np.zeros(len(rows))
    for number, part in enumerate(parts):
        axes.barh(places, shares[:, number], left=before, color=colour(number), label=part)
        before += shares[:, number]
    axes.set_yticks(places, rows)
    axes.invert_yaxis()  # the first one on top
    axes.set_xlim(0, 1)
    axes.set_xlabel("cumulative share")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize="small", frameon=False)


def _shares(counts: np.ndarray) -> np.ndarray:
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)
