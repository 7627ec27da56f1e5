"""A layer of experts from which each sample gets its own (Ramachandran & Le, Section 2).

N samples, C channels, E experts, D length of what the gate sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..settings import PerExampleSettings
from .expert_dispatch import Dispatch, run_groups, scatter_sum
from .gates import Gating, NoisyTopKGate

ROUTERS = PerExampleSettings.choices("router")
"""What a gate can look at, see :class:`Router`."""


class Context(NamedTuple):
    """What the gates of a network know of N samples beside their maps.

    Attributes:
        tasks: (N,) int64, number of each sample's task.
        embedding: (N, T) of these tasks; T is 0 with one task.
    """

    tasks: Tensor
    embedding: Tensor


class Router(nn.Module):
    """A gate, and what it looks at.

    "pooled" is the sample's own map (its mean over the pixels), "pooled_task" with the embedding of
    its task behind it, "task" the embedding alone, "constant" nothing: then all samples take one
    path, which is architecture search; with "task" those of a task do, as in PathNet (Section 2.2).
    In training those that share a path share the gate's noise, for otherwise they would not.

    Args:
        kind: one of ``ROUTERS``.
        channels: C.
        task_width: T.
        experts: E.
        k: experts a sample.
        noise: see ``NoisyTopKGate``.

    Raises:
        ConfigError: the kind is unknown, needs tasks that there are not, or k is out of range.
    """

    def __init__(
        self,
        kind: str,
        channels: int,
        task_width: int,
        experts: int,
        k: int,
        noise: float = PerExampleSettings.noise,
    ) -> None:
        super().__init__()
        if kind not in ROUTERS:
            raise ConfigError(f"a router is one of {', '.join(ROUTERS)}, not {kind!r}")
        if kind == "task" and not task_width:
            raise ConfigError('router "task" needs several tasks, whose embeddings it looks at')
        self.kind = kind
        width = {"pooled": channels, "task": task_width, "constant": 1}
        self.gate = NoisyTopKGate(width.get(kind, channels + task_width), experts, k, noise)

    def forward(self, x: Tensor, context: Context) -> Gating:
        """Decide for maps (N, C, H, W) or vectors (N, C)."""
        if self.kind == "constant":
            return self.gate(x.new_ones((len(x), 1)), torch.zeros_like(context.tasks))
        if self.kind == "task":
            return self.gate(context.embedding, context.tasks)
        pooled = x
        if x.dim() > 2:
            # Rounded means of half precision would move decisions.
            pooled = x.flatten(2).mean(2, dtype=torch.promote_types(x.dtype, torch.float32))
        if self.kind == "pooled":
            return self.gate(pooled)
        return self.gate(torch.cat([pooled, context.embedding.to(pooled.dtype)], dim=1))


class RoutingLayer(nn.Module):
    """y = after(Σ_i G(x)_i E_i(x)); an expert runs on the samples that chose it and on no others.

    Args:
        experts: E modules that keep the shape of their input.
        names: of each.
        router: decides; for as many experts.
        after: the layer's own normalisation and activation; None: none.

    Raises:
        ConfigError: there is no expert, or the router is of another number.
    """

    def __init__(
        self,
        experts: Sequence[nn.Module],
        names: Sequence[str],
        router: Router,
        after: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not experts or len(experts) != router.gate.experts:
            raise ConfigError(
                f"a routing layer of {len(experts)} experts has a router for {router.gate.experts}"
            )
        self.experts = nn.ModuleList(experts)
        self.names = tuple(names)
        self.router = router
        self.after = nn.Identity() if after is None else after
        #: How experts run.
        self.dispatch: Dispatch = run_groups

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, Gating]:
        """Maps (N, C, H, W) or vectors (N, C) to the same shape, and what was decided."""
        gating = self.router(x, context)
        groups = self.dispatch(self.experts, x, gating.chosen)
        # Autocast gives some experts' outputs in half precision.
        alike = [group._replace(output=group.output.to(x.dtype)) for group in groups]
        if not alike:  # an empty batch
            return self.after(x), gating
        return self.after(scatter_sum(alike, len(x), gating.weights)), gating
