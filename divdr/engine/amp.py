"""Training in mixed precision, on GPUs and on CPUs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from torch import nn

from ..errors import ConfigError

AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class MixedPrecisionTrainer(SimpleTrainer):
    """Detectron2's training loop under autocast, with scaled gradients where float16 needs them.

    Its ``AMPTrainer`` does the same on CUDA alone.

    Args:
        model: the model, perhaps wrapped for several processes.
        data_loader: gives its inputs.
        optimizer: of its parameters.
        dtype: "float16", or "bfloat16", which needs no scaling.

    Raises:
        ConfigError: another ``dtype``.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        dtype: str = "float16",
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        if dtype not in AMP_DTYPES:
            raise ConfigError(
                f"SOLVER.AMP.DTYPE must be one of {', '.join(AMP_DTYPES)}, not {dtype!r}"
            )
        self.dtype = AMP_DTYPES[dtype]
        self._device = next(model.parameters()).device.type
        self.grad_scaler = torch.amp.GradScaler(self._device, enabled=dtype == "float16")

    def run_step(self) -> None:
        """One iteration; it moves no weight where a gradient is not finite, but scales by less."""
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast(self._device, dtype=self.dtype):
            losses = self.model(data)
            total = sum(losses.values())
        self.optimizer.zero_grad()
        self.grad_scaler.scale(total).backward()
        if hasattr(self, "after_backward"):  # Detectron2 0.6 has no such moment
            self.after_backward()
        self._write_metrics(losses, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Detectron2's, and the scale."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave, in this or the other precision."""
        super().load_state_dict(state_dict)
        scaler = state_dict.get("grad_scaler")
        if scaler and self.grad_scaler.is_enabled():  # bfloat16 leaves none
            self.grad_scaler.load_state_dict(scaler)
