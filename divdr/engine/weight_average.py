"""The average of a model's weights over its last steps: kept, evaluated beside it, and saved."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..checkpoint import write_atomically
from ..errors import CheckpointError
from ..modeling import unwrap
from ..settings import AverageSettings
from .checkpointer import AVERAGED, RoutingCheckpointer

SUFFIX = "_ema"
"""Follows the names of tasks in results of the average."""


class WeightAverage:
    """Exponential moving average of weights, θ̄ ← d·θ̄ + (1 − d)·θ after each step (Polyak's).

    It is of all parameters and of BatchNorm's running statistics. Other buffers (counters, class
    partitions) are the model's own. The first update takes the weights as they are.

    Args:
        model: whose weights, perhaps wrapped for several processes.
        settings: decay d; with ``warm_up`` it is at most (1 + t) / (10 + t) in step t.

    Attributes:
        steps: updates so far.
    """

    def __init__(self, model: nn.Module, settings: AverageSettings) -> None:
        self._model = unwrap(model)
        self._settings = settings
        self._averages: dict[str, Tensor] = {}
        self.steps = 0

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> WeightAverage | None:
        """As ``SOLVER.EMA`` says; None without."""
        settings = AverageSettings.of(cfg.SOLVER.EMA)
        return cls(model, settings) if settings.enabled else None

    def _own(self) -> dict[str, Tensor]:
        """The model's tensors that are averaged, by name."""
        found = {name: p.detach() for name, p in self._model.named_parameters()}
        for name, layer in self._model.named_modules():
            if isinstance(layer, _BatchNorm):
                for kind in ("running_mean", "running_var"):
                    statistic = getattr(layer, kind)
                    if statistic is not None:
                        found[f"{name}.{kind}" if name else kind] = statistic
        return found

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's present weights; the host waits for nothing."""
        own = self._own()
        if not self.steps:
            self._averages = {name: value.clone() for name, value in own.items()}
        else:
            decay = self._settings.decay
            if self._settings.warm_up:
                decay = min(decay, (1 + self.steps) / (10 + self.steps))
            averages = [self._averages[name] for name in own]
            get_ema_multi_avg_fn(decay)(averages, list(own.values()), self.steps)
        self.steps += 1

    @contextmanager
    def in_model(self, *, keep: bool = False) -> Iterator[None]:
        """The model has the average within it, and its own weights, to the bit, after it.

        Args:
            keep: what happens to the weights within belongs to the average from then on.
        """
        own = self._own() if self.steps else {}
        present = {name: value.clone() for name, value in own.items()}
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(self._averages[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in own.items():
                    if keep:
                        self._averages[name].copy_(value)
                    value.copy_(present[name])

    def model_state(self) -> dict[str, Tensor]:
        """State dict of the model with the average in it."""
        with self.in_model():
            return {name: value.clone() for name, value in self._model.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """Steps, and averages on the CPU."""
        return {
            "steps": self.steps,
            "averages": {name: value.cpu() for name, value in self._averages.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave.

        Raises:
            CheckpointError: it is of another model.
        """
        own, averages = self._own(), state["averages"]
        if averages and {n: v.shape for n, v in averages.items()} != {
            n: v.shape for n, v in own.items()
        }:
            raise CheckpointError("the checkpoint's average of weights is of another model")
        self.steps = int(state["steps"])
        self._averages = {name: value.to(own[name], copy=True) for name, value in averages.items()}


class WeightAverageHook(HookBase):
    """Updates an average after each step."""

    def __init__(self, average: WeightAverage) -> None:
        self.average = average

    def after_step(self) -> None:
        """Update it."""
        self.average.update()


class InAverageHook(HookBase):
    """Lets hooks that prepare a model for evaluation prepare the average too, and saves it.

    BatchNorm's statistics (of all processes, or estimated anew) and the correction of a cost target
    are then those of the average itself. At the end it is written as ``model_ema.pth``.

    Args:
        average: of the trained model.
        prepare: hooks whose ``after_step`` changes weights.
        periods: iterations between checkpoints, and between evaluations; 0: at the end alone.
        checkpointer: writes it.
    """

    def __init__(
        self,
        average: WeightAverage,
        prepare: Sequence[HookBase],
        periods: Iterable[int],
        checkpointer: RoutingCheckpointer,
    ) -> None:
        self.average = average
        self.prepare = list(prepare)
        self.periods = [period for period in periods if period > 0]
        self.checkpointer = checkpointer

    def after_step(self) -> None:
        """Prepare it if an evaluation or a checkpoint follows."""
        done = self.trainer.iter + 1
        last = done >= self.trainer.max_iter
        if not (last or any(done % period == 0 for period in self.periods)):
            return
        with self.average.in_model(keep=True):
            for hook in self.prepare:
                hook.trainer = self.trainer
                hook.after_step()
        if last and comm.is_main_process():
            self._save()

    def _save(self) -> None:
        folder = self.checkpointer.save_dir
        if folder:
            content = self.checkpointer.content(self.average.model_state(), training=False)
            write_atomically(os.path.join(folder, AVERAGED), content)


def average_config(cfg: CfgNode) -> CfgNode:
    """The configuration by which an average is evaluated: its files go to ``OUTPUT_DIR/ema``."""
    own = cfg.clone()
    own.defrost()
    own.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "ema")
    return own


def beside(
    results: Mapping[str, Any], averaged: Mapping[str, Any], datasets: Sequence[str]
) -> OrderedDict[str, Any]:
    """Results of a model, and of its average under names of tasks that end in ``_ema``.

    Args:
        results: {task: figures} of one data set, {data set: {task: figures}} of several.
        averaged: likewise.
        datasets: their names.
    """
    if len(datasets) > 1:
        return OrderedDict(
            (name, beside(results[name], averaged[name], [name])) for name in results
        )
    renamed = {f"{task}{SUFFIX}": figures for task, figures in averaged.items()}
    return OrderedDict({**results, **renamed})
