"""Detectron2's training loop, in full or mixed precision; its host seldom waits for the device."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from detectron2.engine import HookBase, SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import ConfigError, NonFiniteLossError
from ..modeling import late_figures, put_scalar_at, unwrap
from ..routing import several_processes
from ..settings import PrecisionSettings
from .batches import batch_on_device, split_batch
from .finite import LossCheck, not_finite, stacked

FULL = "float32"
AMP_DTYPES = {name: getattr(torch, name) for name in PrecisionSettings.choices("dtype")}


class _Step(NamedTuple):
    """What the host knows of an iteration once it has looked.

    Attributes:
        iteration: its number.
        losses: by name, of this process.
        broken: whether a loss was not finite, on any process.
        data_time: seconds that the loader took.
    """

    iteration: int
    losses: dict[str, float]
    broken: bool
    data_time: float


class TrainingLoop(SimpleTrainer):
    """Forward, backward, step; under autocast with scaled gradients where float16 needs them.

    Processes may have different losses. A batch may be run in several parts, whose gradients add up
    to those of the mean of their losses; processes then exchange them once a step.

    A loss that is not finite never reaches the weights. With a period of 1 the host knows every
    loss before it is learned from. With more, only the device does: there the optimiser skips that
    step, momentum included, on all processes; the host looks at the losses of a whole period in
    one copy, and then stops. Running statistics have seen such a batch by then, so :meth:`look`
    comes before every checkpoint and evaluation too (:class:`LossHook`).

    Args:
        model: the model, perhaps wrapped for several processes.
        data_loader: gives its inputs.
        optimizer: of its parameters.
        dtype: "float32", "float16", or "bfloat16", which needs no scaling.
        period: iterations between looks at the losses; it is 1 in any case where the optimiser is
            not fused, and so cannot skip a step on the device, and where no
            :class:`~divdr.engine.finite.LossCheck` is attached to the model.
        parts: equal parts of a batch, one forward and backward each.

    Attributes:
        period: as it came out.

    Raises:
        ConfigError: another ``dtype``.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        dtype: str = FULL,
        period: int = 1,
        parts: int = 1,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        if dtype != FULL and dtype not in AMP_DTYPES:
            raise ConfigError(
                f"SOLVER.AMP.DTYPE must be one of {', '.join(AMP_DTYPES)}, not {dtype!r}"
            )
        self.dtype = AMP_DTYPES.get(dtype, torch.float32)
        self._device = next(model.parameters()).device.type
        self.grad_scaler = torch.amp.GradScaler(self._device, enabled=dtype == "float16")
        self._check = LossCheck.of(unwrap(model))
        skips = getattr(optimizer, "_step_supports_amp_scaling", False)
        self.period = max(1, period) if skips and self._check is not None else 1
        if self._check is not None:
            self._check.deferred = self.period > 1
        self.parts = parts
        self._seen: list[_Step] = []

    def run_step(self) -> None:
        """One iteration; it moves no weight where a gradient is not finite, but scales by less."""
        if self.period > 1:
            late_figures(get_event_storage()).read_by_trainer = True
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        seen = []
        for number, part in enumerate(split_batch(data, self.parts)):
            with nullcontext() if number == self.parts - 1 else _gradients_kept(self.model):
                seen.append(self._learn(part, first=number == 0))
        losses = _mean_of_parts([part for part, _ in seen])
        flags = [broken for _, broken in seen if broken is not None]
        broken = torch.stack(flags).amax() if flags else None
        if hasattr(self, "after_backward"):  # Detectron2 0.6 has no such moment
            self.after_backward()
        if broken is None:
            self._write_metrics(losses, data_time)
        self._step(broken)
        if broken is not None:
            self._note(losses, broken, data_time)
            if (self.iter + 1) % self.period == 0:
                self.look()

    def _learn(self, data: Any, first: bool) -> tuple[dict[str, Tensor], Tensor | None]:
        """Forward and backward of a part: its losses, and where only the device knows, a flag."""
        if self._device == "cuda":
            data = batch_on_device(data, next(self.model.parameters()).device)
        mixed = self.dtype != torch.float32
        with torch.autocast(self._device, dtype=self.dtype if mixed else None, enabled=mixed):
            losses = self.model(data)
            if isinstance(losses, Tensor):
                losses = {"total_loss": losses}
            total = sum(losses.values())
        if self.parts > 1:
            total = total / self.parts
        broken = None
        if self.period > 1:
            assert self._check is not None
            broken = self._check.broken()
            broken = total.new_zeros((), dtype=torch.float32) if broken is None else broken
        if first:
            self.optimizer.zero_grad()
        self.grad_scaler.scale(total if broken is None else self._spoilt(total, broken)).backward()
        return {name: loss.detach() for name, loss in losses.items()}, broken

    def _spoilt(self, total: Tensor, broken: Tensor) -> Tensor:
        """A loss whose gradients are all no numbers where one of the losses is not finite.

        The scaler looks at the gradients of all processes; a loss may be infinite where its
        gradient is not.
        """
        if not self.grad_scaler.is_enabled():
            return total
        return total * torch.where(broken > 0, torch.nan, 1.0)

    def _step(self, broken: Tensor | None) -> None:
        if self.grad_scaler.is_enabled():
            # Before the step, in whose beginning gradients are clipped.
            self.grad_scaler.unscale_(self.optimizer)
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
            return
        if broken is None:
            self.optimizer.step()
            return
        if several_processes():  # the gradients of one process are those of all
            dist.all_reduce(broken, dist.ReduceOp.MAX)
        # What a GradScaler tells a fused optimiser: above 0 it leaves everything as it is.
        self.optimizer.found_inf = broken
        try:
            self.optimizer.step()
        finally:
            del self.optimizer.found_inf

    def _note(self, losses: Mapping[str, Tensor], broken: Tensor, data_time: float) -> None:
        take = partial(self._take, self.iter, tuple(losses), data_time)
        late_figures(get_event_storage()).wait(torch.cat([stacked(losses), broken[None]]), take)

    def _take(
        self, iteration: int, names: tuple[str, ...], data_time: float, values: list[float]
    ) -> None:
        losses = dict(zip(names, values[:-1], strict=True))
        self._seen.append(_Step(iteration, losses, values[-1] > 0, data_time))

    def look(self) -> None:
        """Read losses and figures since the last look, and log them; a collective call.

        Raises:
            NonFiniteLossError: a loss was not finite, on any process.
        """
        if self.period == 1:
            return
        storage = get_event_storage()
        late_figures(storage).read()
        own, self._seen = self._seen, []
        every = comm.all_gather(own)
        for steps in zip(*every, strict=True):
            if any(step.broken for step in steps):
                raise _error(steps)
            at = steps[0].iteration
            put_scalar_at(storage, "rank_data_time", steps[comm.get_rank()].data_time, at)
            if not comm.is_main_process():
                continue
            put_scalar_at(storage, "data_time", max(step.data_time for step in steps), at)
            for name, value in _means([step.losses for step in steps]).items():
                put_scalar_at(storage, name, value, at)

    def _write_metrics(
        self,
        loss_dict: Mapping[str, Tensor],
        data_time: float,
        prefix: str = "",
        iter: int | None = None,  # as Detectron2 calls it
    ) -> None:
        """Detectron2's, but for processes that may have different losses.

        Raises:
            FloatingPointError: the sum is not finite.
        """
        at = self.iter if iter is None else iter
        if (at + 1) % getattr(self, "gather_metric_period", 1):  # which Detectron2 0.6 lacks
            return
        own = dict(zip(loss_dict, stacked(loss_dict).tolist(), strict=True))
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", data_time)
        gathered = comm.gather((own, data_time))
        if not comm.is_main_process():
            return
        storage.put_scalar("data_time", max(seconds for _, seconds in gathered))
        means = _means([losses for losses, _ in gathered])
        if not math.isfinite(means["total_loss"]):
            raise FloatingPointError(f"the loss of iteration {at} is not finite: {gathered}")
        for name, value in means.items():
            storage.put_scalar(f"{prefix}{name}" if name == "total_loss" else name, value)

    def state_dict(self) -> dict[str, Any]:
        """Detectron2's, and the scale."""
        scaler = self.grad_scaler.state_dict()
        return {**super().state_dict(), **({} if self._full else {"grad_scaler": scaler})}

    @property
    def _full(self) -> bool:
        return self.dtype == torch.float32

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave, in this or another precision."""
        super().load_state_dict(state_dict)
        scaler = state_dict.get("grad_scaler")
        if scaler and self.grad_scaler.is_enabled():  # bfloat16 leaves none
            self.grad_scaler.load_state_dict(scaler)


def _gradients_kept(model: nn.Module) -> Any:
    """Within it, processes keep their gradients to themselves."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def _mean_of_parts(every: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Losses of a batch from those of its equal parts; one that a part lacks is 0 there."""
    if len(every) == 1:
        return every[0]
    names = dict.fromkeys(name for losses in every for name in losses)
    return {
        name: torch.stack([losses[name] for losses in every if name in losses]).sum(0) / len(every)
        for name in names
    }


def _means(every: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean over all processes as "total_loss", and if there are several losses that of each.

    With several tasks a process may train one and another process another in the same step: a loss
    is the mean over those that have it.
    """
    means = {"total_loss": sum(sum(losses.values()) for losses in every) / len(every)}
    names = dict.fromkeys(name for losses in every for name in losses)
    for name in names if len(names) > 1 else ():
        values = [losses[name] for losses in every if name in losses]
        means[name] = sum(values) / len(values)
    return means


def _error(steps: Iterable[_Step]) -> NonFiniteLossError:
    """Of an iteration on all processes."""
    steps = list(steps)
    names = [name for step in steps for name in not_finite(step.losses)]
    what = ", ".join(dict.fromkeys(names)) or "a loss"
    return NonFiniteLossError(
        f"{what} is not finite in iteration {steps[0].iteration}, which was left out; training "
        "stops, the last good checkpoint stays"
    )


class LossHook(HookBase):
    """Looks at the losses before anything that lasts is made of the model.

    Args:
        periods: iterations between checkpoints, and between evaluations; 0: at the end alone.
    """

    def __init__(self, periods: Iterable[int]) -> None:
        self.periods = [period for period in periods if period > 0]

    def after_step(self) -> None:
        """Look if a checkpoint or an evaluation follows."""
        done = self.trainer.iter + 1
        if done >= self.trainer.max_iter or any(done % period == 0 for period in self.periods):
            self.trainer._trainer.look()
