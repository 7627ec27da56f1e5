"""Per-example routing as a classifier of one task or several.

Ramachandran & Le, "Diversity and Depth in Per-Example Routing Models", ICLR 2019. N samples, C
classes, E experts of a decision, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError, DataError
from .balance import Balance
from .choice import one_hot_choice
from .expert_dispatch import Dispatch, run_groups
from .gates import Gating
from .multiply_adds import each_macs, part_macs
from .routing_layer import Context, RoutingLayer
from .system import Cost, Prediction, Stage


class Decision(NamedTuple):
    """One choice that a network makes for each image.

    Attributes:
        name: where it is made.
        experts: what it is made among.
        columns: of ``Prediction.ran``, where these experts stand.
    """

    name: str
    experts: tuple[str, ...]
    columns: slice


class BodyCost(NamedTuple):
    """Multiply-adds for one image, and what comes out.

    Attributes:
        shared: what always runs.
        experts: of each expert of each decision, if it runs.
        shape: of the output, without the batch.
    """

    shared: float
    experts: tuple[float, ...]
    shape: tuple[int, ...]


class Body(Protocol):
    """The part of a network that routes: a module."""

    out_channels: int

    def __call__(self, x: Tensor, context: Context) -> tuple[Tensor, list[Gating]]:
        """Maps or vectors to others, and what was decided, decision by decision."""
        ...

    def choices(self) -> list[tuple[str, tuple[str, ...]]]:
        """Name and experts of each decision, in their order."""
        ...

    def cost(self, shape: Sequence[int]) -> BodyCost:
        """For an input of a shape without the batch."""
        ...


class RoutedLayers(nn.Module):
    """Routing layers one after the other, with other modules between them (Sections 4.1 and 4.2).

    Args:
        layers: ``RoutingLayer`` and others, such as poolings.
        out_channels: of the last.
    """

    def __init__(self, layers: Sequence[nn.Module], out_channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.out_channels = out_channels

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, list[Gating]]:
        """Run them."""
        decided = []
        for layer in self.layers:
            if isinstance(layer, RoutingLayer):
                x, gating = layer(x, context)
                decided.append(gating)
            else:
                x = layer(x)
        return x, decided

    def choices(self) -> list[tuple[str, tuple[str, ...]]]:
        """Each layer's experts."""
        routed = [layer.names for layer in self.layers if isinstance(layer, RoutingLayer)]
        return [(f"layer {number}", names) for number, names in enumerate(routed, start=1)]

    def cost(self, shape: Sequence[int]) -> BodyCost:
        """Gates are shared; experts cost if they run."""
        shared = 0.0
        experts: list[float] = []
        for layer in self.layers:
            if isinstance(layer, RoutingLayer):
                own = layer_cost(layer, shape)
                shared += own.shared
                experts += own.experts
            else:
                macs, shape = part_macs(layer, shape)
                shared += macs
        return BodyCost(shared, tuple(experts), tuple(shape))


def layer_cost(layer: RoutingLayer, shape: Sequence[int]) -> Cost:
    """Multiply-adds of a routing layer: its gate's without noise, and each expert's."""
    gate = layer.router.gate.score
    return Cost(float(gate.in_features * gate.out_features), each_macs(layer.experts, shape))


class PerExample(nn.Module):
    """Shared layers, a body that routes each image, and a linear readout for each task.

    ``progress`` says how far training is, 0 to 1, and with it the weight of the balance losses;
    whoever trains sets it. Logits of classes that an image's task does not have are -∞.

    Args:
        stem: images to what the body takes.
        body: routes.
        classes: C of each task.
        task_width: numbers in a task's embedding, for the body's gates; 0: they look at none.
        balance_weight: of importance and load loss, at the start and at the end of training.
        balance_steps: steps whose samples these losses sum over.
        in_channels: of the images.

    Raises:
        ConfigError: there is no task, or a number is out of range.
    """

    def __init__(
        self,
        stem: nn.Module,
        body: nn.Module,
        classes: Sequence[int],
        *,
        task_width: int = 0,
        balance_weight: tuple[float, float],
        balance_steps: int = 1,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if not classes or min(classes) < 1:
            raise ConfigError(f"every task needs at least one class, and not {list(classes)}")
        if len(balance_weight) != 2:
            raise ConfigError(
                "the weight of the balance losses is two numbers, at the start and at the end, not "
                f"{len(balance_weight)}"
            )
        self.stem = stem
        self.body: Body = body  # type: ignore[assignment]
        self.classes = list(classes)
        self.num_classes = max(classes)
        width = self.body.out_channels
        self.readouts = nn.ModuleList(nn.Linear(width, count) for count in classes)
        self.embedding = nn.Embedding(len(classes), task_width) if task_width else None
        self.balance_weight = balance_weight
        self.in_channels = in_channels
        self.progress = 0.0
        self.decisions = number_decisions(self.body.choices())
        self.balance = Balance([len(each.experts) for each in self.decisions], balance_steps)

    @property
    def dispatch(self) -> Dispatch:
        """How experts run, in all layers."""
        return self._layers()[0].dispatch

    @dispatch.setter
    def dispatch(self, dispatch: Dispatch) -> None:
        for layer in self._layers():
            layer.dispatch = dispatch

    def _layers(self) -> list[RoutingLayer]:
        return [module for module in self.modules() if isinstance(module, RoutingLayer)]

    @property
    def stages(self) -> list[Stage]:
        """One: everything learns from start to end."""
        return [Stage("routing", 0.0)]

    @property
    def tasks(self) -> int:
        """T, number of tasks."""
        return len(self.classes)

    def forward(self, images: Tensor, tasks: Tensor | None = None) -> Prediction:
        """Predict.

        Args:
            images: (N, C, H, W).
            tasks: (N,) int64, number of each image's task; None: there is one.

        Raises:
            DataError: see :meth:`check_tasks`.
        """
        logits, decided = self._run(images, self.check_tasks(tasks, images))
        return Prediction(logits, torch.cat([gating.chosen for gating in decided], dim=1))

    def losses(
        self, images: Tensor, labels: Tensor, tasks: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Cross-entropy, and the weighted importance and load losses; a collective call.

        Args:
            images: (N, C, H, W).
            labels: (N,) int64, each a class of the image's task.
            tasks: (N,) int64; None: there is one.

        Raises:
            DataError: a label is no class, or see :meth:`check_tasks`.
        """
        tasks = self.check_tasks(tasks, images)
        self._check_labels(labels, tasks)
        logits, decided = self._run(images, tasks)
        start, end = self.balance_weight
        weight = start + (end - start) * self.progress
        balance = self.balance([g.weights for g in decided], [g.load for g in decided])
        return {
            "loss_classes": F.cross_entropy(logits, labels),
            "loss_importance": weight * balance.importance,
            "loss_load": weight * balance.load,
        }

    def check_tasks(self, tasks: Tensor | None, images: Tensor) -> Tensor:
        """(N,) number of each image's task, checked.

        Raises:
            DataError: a task has no readout, or none is given where there are several.
        """
        if tasks is None:
            if self.tasks > 1:
                raise DataError(f"the model has {self.tasks} tasks; an image must say which is its")
            return torch.zeros(len(images), dtype=torch.int64, device=images.device)
        wrong = tasks[(tasks < 0) | (tasks >= self.tasks)]
        if len(wrong):
            raise DataError(
                f"task {int(wrong[0])} has no readout; the model's tasks are 0 to {self.tasks - 1}"
            )
        return tasks

    def cost(self, height: int, width: int) -> Cost:
        """Multiply-adds at an image size; of the readouts the largest, which runs or a smaller."""
        stem, shape = part_macs(self.stem, (self.in_channels, height, width))
        body = self.body.cost(shape)
        readout = self.body.out_channels * self.num_classes
        return Cost(stem + body.shared + readout, body.experts)

    def _run(self, images: Tensor, tasks: Tensor) -> tuple[Tensor, list[Gating]]:
        embedding = images.new_zeros((len(images), 0))
        if self.embedding is not None:
            embedding = self.embedding(tasks)
        maps, decided = self.body(self.stem(images), Context(tasks, embedding))
        pooled = maps.flatten(2).mean(2) if maps.dim() > 2 else maps
        logits = pooled.new_full((len(images), self.num_classes), -torch.inf, dtype=torch.float32)
        for group in run_groups(self.readouts, pooled, one_hot_choice(tasks, self.tasks)):
            lacking = self.num_classes - group.output.shape[1]
            rows = F.pad(group.output.float(), (0, lacking), value=-torch.inf)
            logits = logits.index_copy(0, group.rows, rows)
        return logits, decided

    def _check_labels(self, labels: Tensor, tasks: Tensor) -> None:
        counts = torch.tensor(self.classes, device=labels.device)[tasks]
        wrong = ((labels < 0) | (labels >= counts)).nonzero()[:, 0]
        if len(wrong):
            task = f" of task {int(tasks[wrong[0]])}" if self.tasks > 1 else ""
            raise DataError(
                f"label {int(labels[wrong[0]])} is no class{task}; there are "
                f"{int(counts[wrong[0]])} classes, from 0"
            )


def number_decisions(choices: Sequence[tuple[str, tuple[str, ...]]]) -> tuple[Decision, ...]:
    """Decisions whose experts' columns stand one after the other.

    Args:
        choices: name and experts of each.
    """
    found, start = [], 0
    for name, experts in choices:
        found.append(Decision(name, experts, slice(start, start + len(experts))))
        start += len(experts)
    return tuple(found)
