"""Training steps off the gates' own routes: noise on gates that fades, and random routes.

What no image opens is not trained, and what is not trained stays closed; both ways train more of
the space before a cost target closes it.
"""

from __future__ import annotations

from functools import partial

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import ConfigError
from ..routing import DynamicRoutingNetwork, to_iterations
from ..settings import ExplorationSettings


class ExplorationHook(HookBase):
    """Changes what gates say in training steps (``MODEL.ROUTING.EXPLORATION``).

    Noise is normal, of each gate and image, and falls linearly to none. Random routes follow the
    sandwich rule (Yu & Huang, ICCV 2019) over steps: everything as the gates say, then one
    transform of each cell, then a random share of all; each for all images of a step, and of all
    processes. Gates that decide nothing, on a route, are left alone.

    Args:
        network: whose gates.
        settings: how much, and for how long.
        max_iter: iterations of the whole training.
        seed: of the random routes, which depend on the iteration alone.
    """

    def __init__(
        self,
        network: DynamicRoutingNetwork,
        settings: ExplorationSettings,
        max_iter: int,
        seed: int,
    ) -> None:
        self.network = network
        self.noise = settings.noise
        self.noise_until = to_iterations(settings.noise_until, max_iter)
        self.random_until = to_iterations(settings.random_until, max_iter)
        self.seed = seed
        self._deviation = 0.0
        self._closed: list[Tensor] | None = None
        self._handles: list[RemovableHandle] = []

    def before_train(self) -> None:
        """Listen to the gates.

        Raises:
            ConfigError: cells have none, as one early look decides.
        """
        if self.network.early is not None:
            raise ConfigError(
                f'{ExplorationSettings.KEY} changes gates of cells, not those of GATE "early"'
            )
        gates = [cell.gate for cell in self.network.cells()]
        for number, gate in enumerate(gates):
            if gate is not None:
                self._handles.append(gate.register_forward_hook(partial(self._change, number)))

    def before_step(self) -> None:
        """Draw the step's route, and set the noise."""
        now = self.trainer.iter
        left = 1.0 - now / self.noise_until if now < self.noise_until else 0.0
        self._deviation = self.noise * left
        self._closed = self._draw(now) if now < self.random_until and now % 3 else None

    def after_step(self) -> None:
        """Leave what follows a step alone, as batch statistics for an evaluation."""
        self._deviation, self._closed = 0.0, None

    def after_train(self) -> None:
        """Leave the gates as they were."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _draw(self, iteration: int) -> list[Tensor]:
        """(T,) bool for each cell: the transforms that are closed in this step."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + iteration)
        least, share = iteration % 3 == 1, torch.rand((), generator=generator)
        closed = []
        for cell in self.network.cells():
            draws = torch.rand(len(cell.node.gated), generator=generator)
            closed.append(draws < draws.max() if least else draws < share)
        return closed

    def _change(
        self, number: int, gate: nn.Module, _: tuple[Tensor, ...], logits: Tensor
    ) -> Tensor | None:
        if not gate.training or self.network.stays_open:
            return None
        if self._deviation:
            logits = logits + self._deviation * torch.randn_like(logits)
        if self._closed is not None:
            closed = self._closed[number].to(logits.device, non_blocking=True)
            logits = torch.where(closed, logits.clamp(max=0.0), logits)
        return logits
