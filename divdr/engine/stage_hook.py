"""Training in stages: what a system or a head gets to know, and when."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..data import build_train_loader
from ..modeling import ImageClassifier, unwrap
from ..modeling.classifiers import collaboration_of, prepare_collaboration
from ..moe import PWLU, Stage, align
from ..routing import to_iterations
from .partition_hook import normalised_batches
from .setup import together

logger = logging.getLogger(__name__)

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Makes (images, labels) of every training image once, normalised and without augmentation."""


def staged_parts(model: nn.Module) -> list[Any]:
    """The system, box head or segmentation head that trains in stages (``divdr.moe.Staged``)."""
    return [module for module in unwrap(model).modules() if _is_staged(module)]


def _is_staged(module: nn.Module) -> bool:
    stages = getattr(module, "stages", None)  # those of Detectron2's ResNet are of its layers
    return isinstance(stages, Iterable) and any(isinstance(stage, Stage) for stage in stages)


def stage_starts(model: nn.Module, iterations: int) -> list[int]:
    """Iterations at which stages of a model begin, the start of training left out."""
    stages = [stage for part in staged_parts(model) for stage in part.stages]
    return sorted({stage.begins(iterations) for stage in stages} - {0, iterations})


def first_iteration(model: nn.Module, iterations: int) -> int:
    """Where training begins that no checkpoint is continued by: ``first_progress`` of its parts."""
    return _iteration(model, iterations, "first_progress", 0.0)


def last_iteration(model: nn.Module, iterations: int) -> int:
    """Where training ends: ``last_progress`` of its parts."""
    return _iteration(model, iterations, "last_progress", 1.0)


def _iteration(model: nn.Module, iterations: int, name: str, default: float) -> int:
    shares = [getattr(part, name, default) for part in staged_parts(model)]
    # As stages begin, so that one of them can be the first or the one that is left out.
    return Stage(name, max(shares, default=default)).begins(iterations)


class StageHook(HookBase):
    """Sets how far training is, before every step, and lets stages begin.

    A part that has ``begin(stage, source)`` is called once for every stage, at its first iteration;
    a resumed run does not call it again. ``source`` makes, for a classification system, (images,
    labels) of every training image; for a head of another model it runs that model, in training
    mode and without gradients, on training batches of a stream of its own. Where training starts
    inside a stage, that one begins there. The first stages of a schedule that is too short to tell
    them apart begin one after the other. ``finished(folder)`` is called on the main process when
    training is over.

    Args:
        cfg: the whole configuration.
        model: what is trained; one without stages is left alone.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        self.cfg = cfg
        self.model = unwrap(model)
        self.parts = staged_parts(model)
        self.functions = [m for m in model.modules() if isinstance(m, PWLU)]

    def before_train(self) -> None:
        """Take over a collaboration's delegator and teacher.

        Raises:
            DivdrError: a setting or a file cannot be used; the message says why.
        """
        system = collaboration_of(self.model)
        if system is not None:
            together(prepare_collaboration, self.cfg, system)

    def before_step(self) -> None:
        """Set the progress, begin stages and realign PWLUs.

        Raises:
            DivdrError: a stage cannot begin; the message says why.
        """
        done, whole = self.trainer.iter, self.cfg.SOLVER.MAX_ITER
        for part in self.parts:
            part.progress = done / whole
            for stage in self._beginning(part.stages, done, whole):
                logger.info("Stage %r of the training begins at iteration %d", stage.name, done)
                if hasattr(part, "begin"):
                    together(part.begin, stage, self._source)
        self._realign(done, whole)

    def _beginning(self, stages: Iterable[Stage], done: int, whole: int) -> list[Stage]:
        """Stages that begin at an iteration."""
        stages = list(stages)
        begin = [stage for stage in stages if stage.begins(whole) == done]
        first = done == self.trainer.start_iter and not getattr(self.trainer, "resumed", False)
        if not begin and first:
            begin = [stage for stage in stages if stage.begins(whole) < done][-1:]
        return begin

    @property
    def _source(self) -> Batches | Callable[[], Iterator[None]]:
        if not isinstance(self.model, ImageClassifier):
            return self._passes
        names = list(self.cfg.DATASETS.TRAIN)
        return partial(normalised_batches, self.cfg, self.model, names)

    def _passes(self) -> Iterator[None]:
        """Run the model on batches of an endless stream of its own, one after the other."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0
        for inputs in build_train_loader(cfg, seed=self.trainer.seed + 1):
            # Whoever takes the next batch goes on outside; nothing of the passes is logged.
            with torch.no_grad(), EventStorage():
                self.model(inputs)
            yield

    def _realign(self, done: int, whole: int) -> None:
        """Place PWLUs when they have seen enough of the experts' stage."""
        if not self.functions:
            return
        starts = [s.begins(whole) for p in self.parts for s in p.stages if s.name == "experts"]
        start = max(starts, default=0)
        wait = to_iterations(self.cfg.MODEL.CLASSIFIER.COE.PWLU_STATISTICS, whole - start)
        if done >= start + wait:
            # Those that are done are asked no more: on a GPU each question waits for the device.
            self.functions = [f for f in self.functions if not bool(f.aligned)]
            align(self.functions)

    def after_train(self) -> None:
        """Tell parts that training is over; one that was broken off is not."""
        if self.trainer.iter >= self.trainer.max_iter and comm.is_main_process():
            for part in self.parts:
                if hasattr(part, "finished"):
                    part.finished(self.cfg.OUTPUT_DIR)
