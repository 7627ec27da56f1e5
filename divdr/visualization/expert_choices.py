"""Which experts the images of each class get, and which classes each expert gets.

Figure 4 of Ramachandran & Le, "Diversity and Depth in Per-Example Routing Models". C classes, E
experts of one decision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tabulate import tabulate

from ..data import build_test_loader
from ..engine.classifier_analysis import trained_classifier
from ..errors import ConfigError
from ..modeling.classifiers import per_example_of
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
    """

    decision: str
    experts: list[str]
    classes: list[str]
    counts: np.ndarray

    def per_class(self) -> np.ndarray:
        """(C, E) share of each expert in what ran for a class's images; zeros without images."""
        return _shares(self.counts)

    def per_expert(self) -> np.ndarray:
        """(E, C) share of each class in the images that an expert ran for; zeros without any."""
        return _shares(self.counts.T)

    def table(self) -> str:
        """Shares per class, and under them how many images each expert ran for."""
        rows = [[name, *row] for name, row in zip(self.classes, self.per_class(), strict=True)]
        total = ["images", *map(int, self.counts.sum(0))]
        return tabulate([*rows, total], headers=(self.decision, *self.experts), floatfmt=".2f")


@torch.no_grad()
def expert_choices(cfg: CfgNode, decision: int = -1) -> ExpertChoices:
    """What a trained model chooses for the images of ``DATASETS.TEST``.

    Systems other than per-example routing make one decision, in which an image may choose no expert
    or several.

    Args:
        cfg: of a trained classifier.
        decision: its place among the model's, from 0; negative ones count from the last.

    Raises:
        ConfigError: the model makes no such decision, or there are several test sets, whose classes
            differ.
    """
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
    return names[0], list(MetadataCatalog.get(names[0]).classes)


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
    """Build for each run the picture, and a table of how many images of a class each expert got."""
    section = Section("Classes of the experts")
    for run, chosen in choices.items():
        words = f"{run}: experts that ran for images of each true class, and classes that each got."
        section.pictures.append(Picture(expert_choices_figure(chosen), words, "wide"))
        if len(chosen.classes) > _LISTED:
            continue
        totals = chosen.counts.sum(0)
        rows = [
            (name, [TableEntry(str(n)) for n in counts])
            for name, counts in zip(chosen.classes, chosen.counts, strict=True)
        ]
        rows.append(("all", [TableEntry(str(n)) for n in totals]))
        caption = f"{run}: images of each true class for which an expert ran."
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
