"""What single-gated box heads and segmentation heads share, made from a model that stays.

"Revisiting single-gated Mixtures of Experts" (Royer et al.). The base is a head that is trained
already; gate and experts learn beside it, and nothing below or beside them moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ..moe import (
    ExitThreshold,
    Reservoir,
    SampleGate,
    Stage,
    as_first_process,
    divergence,
    gather_rows,
    stage_at,
    weighted_mean,
)
from ..routing import to_iterations
from ..settings import HeadMixtureSettings

Passes = Callable[[], Iterable[object]]
"""Runs the model on training batches, one after the other, without learning from them."""


class SingleGateHead(ExitThreshold, nn.Module):
    """Gate, stages and clusters of a head whose rows are proposals, images or windows.

    Args:
        width: D, numbers of a row's embedding.
        experts: K.
        settings: see there.
        max_iter: iterations of the whole training.
        seed: of K-means.

    Attributes:
        threshold: τ of the early exit; it can be changed at any time, without training.
        progress: how far training is, 0 to 1; whoever trains sets it.
        stages: "gate", then "experts".
    """

    leaves_parameters_out = True

    def __init__(
        self, width: int, experts: int, settings: HeadMixtureSettings, max_iter: int, seed: int
    ) -> None:
        super().__init__()
        self.check_threshold(settings.threshold)
        self.gate = SampleGate(width, experts, similarity=settings.similarity)
        self.settings: HeadMixtureSettings = settings
        self.threshold = settings.threshold
        self.progress = 0.0
        gate = min(to_iterations(settings.gate_stage, max_iter), max_iter - 1)
        self.stages = (Stage("gate", 0.0), Stage("experts", gate / max_iter))
        self.seed = seed
        self._reservoir: Reservoir | None = None

    @property
    def stage(self) -> str:
        """Name of the stage that training is in."""
        return stage_at(self.stages, self.progress).name

    @torch.no_grad()
    def begin(self, stage: Stage, passes: Passes) -> None:
        """Cluster embeddings of training rows before the gate learns, unless a checkpoint has them.

        Args:
            stage: one of ``stages``.
            passes: runs the model on training batches in training mode, each process on its own.

        Raises:
            ConfigError: there are fewer rows than experts.
        """
        if stage.name != "gate" or self.gate.is_fitted:
            return
        settings = self.settings
        self._reservoir = Reservoir(settings.cluster_rows, self.seed)
        try:
            for number, _ in enumerate(passes(), 1):
                if number >= settings.cluster_batches:
                    break
            z = gather_rows(self._reservoir.rows(self.gate.centres))[0]
        finally:
            self._reservoir = None
        self.gate.fit_samples(z, seed=self.seed)
        as_first_process(self.gate)

    def collects(self, z: Tensor) -> bool:
        """Whether clusters are being made; the embeddings (R, D) are taken then."""
        if self._reservoir is not None:
            self._reservoir.add(z)
        return self._reservoir is not None

    def gate_loss(self, z: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Mean of KL(g₀ ‖ g) over the rows of all processes; a collective call.

        Args:
            z: (R, D) embeddings; a process may have none.
            targets: (R, K) g₀.
            weights: (R,) of the rows; None: each 1.
        """
        weights = torch.ones_like(z[:, 0]) if weights is None else weights
        return weighted_mean(divergence(targets, self.gate(z)), weights.float())

    def attach(self, model: nn.Module) -> None:
        """Get to know the model around, which the head alone may not see."""

    def own_parts(self) -> Iterator[nn.Module]:
        """What learns, after the base."""
        raise NotImplementedError


def single_gate_heads(model: nn.Module) -> list[SingleGateHead]:
    """The single-gated heads in a model."""
    return [module for module in model.modules() if isinstance(module, SingleGateHead)]


def freeze_around_mixtures(model: nn.Module) -> None:
    """Let gates and experts of single-gated heads learn alone, if a model has any.

    Everything else keeps its weights and, in evaluation, BatchNorm's statistics, so that the model
    without its experts stays, bit by bit, what it was. It holds for each later forward.
    """
    heads = single_gate_heads(model)
    if not heads:
        return
    model.requires_grad_(False)
    learning: set[nn.Module] = set()
    for head in heads:
        head.attach(model)
        for part in head.own_parts():
            part.requires_grad_(True)
            learning.update(part.modules())
        learning.update(_path(model, head))
    still = [module for module in model.modules() if module not in learning]

    def keep(module: nn.Module, args: object) -> None:
        if module.training:
            for part in still:
                part.training = False

    model.register_forward_pre_hook(keep)


def _path(model: nn.Module, head: nn.Module) -> Sequence[nn.Module]:
    """The modules from a model down to its head, which decide by their mode what they return."""
    name = next(name for name, module in model.named_modules() if module is head)
    parts = name.split(".") if name else []
    return [model.get_submodule(".".join(parts[:end])) for end in range(len(parts) + 1)]
