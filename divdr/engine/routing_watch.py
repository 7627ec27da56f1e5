"""Looks at routing after each clustering, and says in the log and in a file when it is none."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor

from ..checkpoint import write_text_atomically
from ..experts.routing_warnings import (
    CLUSTERINGS,
    FILE,
    SHRINKING,
    RoutingWarning,
    gates_alike,
    gates_open,
    off_target,
    one_expert_holds,
    one_route,
    pulled_together,
    read_warnings,
    swapped_ids,
    unused_cells,
    warnings_text,
)
from ..modeling import RoutingSupervision
from ..routing import TRANSFORMS

logger = logging.getLogger(__name__)

_ROWS = 2000  # of the bank that are brought to the host
_WINDOW = 20  # steps whose median is the cost


class RoutingWatchHook(HookBase):
    """Judges routing at each clustering, and costs there and at the end; tells each thing once.

    Experts are judged from the first clustering on, routes and cost in the second half of training:
    until then gates may all be open still; gates that look at nothing have neither. Everything is
    in ``routing_warnings.json``, which ``divdr.experts.routing_warnings`` reads. A resumed run
    tells nothing again, and counts clusterings anew.

    Args:
        routing: attached to the trained model.
        folder: of the run.
        max_iter: iterations of the whole training.
    """

    def __init__(self, routing: RoutingSupervision, folder: str, max_iter: int) -> None:
        self.routing = routing
        self.path = os.path.join(folder, FILE)
        self.max_iter = max_iter
        space = routing.backbone.space
        exists = np.zeros((space.num_cells, len(TRANSFORMS)), bool)
        for cell in space.cells:
            exists[cell.index, list(cell.transforms)] = True
        self._exists = exists.reshape(-1)
        self._names = [f"layer {cell.layer} stride {4 * 2**cell.scale}" for cell in space.cells]
        self._idle: np.ndarray = np.zeros(space.num_cells, int)
        self._sizes: list[list[int]] = []
        self._inter: list[float] = []
        self._acts: list[bool] = []
        self._told: list[RoutingWarning] = []
        self._members = None if routing.experts is None else routing.experts.members

    def before_train(self) -> None:
        """Take up what was told before, or forget it where training starts anew."""
        if self.routing.experts is not None:
            self._members = self.routing.experts.members
        if not comm.is_main_process():
            return
        if getattr(self.trainer, "resumed", False):
            self._told = read_warnings(self.path)
        elif os.path.isfile(self.path):
            os.remove(self.path)

    def after_step(self) -> None:
        """Look if a clustering has just been, or training ends."""
        experts = self.routing.experts
        clustered = experts is not None and experts.members is not self._members
        last = self.trainer.iter + 1 >= self.trainer.max_iter
        if not (clustered or last) or not comm.is_main_process():
            return
        clustered = clustered and self.routing.backbone.looks
        found = list(self._of_experts()) if clustered else []
        if 2 * (self.trainer.iter + 1) >= self.max_iter:
            found += [*(self._of_routes() if clustered else ()), *self._of_costs()]
        told = {warning.kind for warning in self._told}
        new = [warning for warning in found if warning is not None and warning.kind not in told]
        for warning in new:
            logger.warning("Routing: %s", warning.text)
            self._told.append(
                RoutingWarning(warning.kind, warning.text, iteration=self.trainer.iter)
            )
        if new and os.path.isdir(os.path.dirname(self.path) or "."):
            write_text_atomically(self.path, warnings_text(self._told))

    def _of_experts(self) -> Iterator[RoutingWarning | None]:
        experts = self.routing.experts
        assert experts is not None
        assert experts.centres is not None
        keys = experts.members.keys
        after = experts.members.of(keys)
        if after is None:
            return
        self._sizes.append(torch.bincount(after, minlength=experts.num_experts).tolist())
        self._inter.append(
            float(F.pdist(experts.centres.float()).mean()) if len(experts.centres) > 1 else 0.0
        )
        # Before this clustering: the loss needs centres, and those of the first are new.
        self._acts.append(
            len(self._inter) > 1 and self.routing.clustering.weight > 0 and experts.settled
        )
        before = None if self._members is None else self._members.of(keys)
        self._members = experts.members
        del self._sizes[:-CLUSTERINGS], self._inter[:-SHRINKING], self._acts[:-SHRINKING]
        if experts.labels is None:
            yield one_expert_holds(self._sizes)
        yield pulled_together(self._inter, self._acts)
        if before is not None:
            both = before >= 0
            yield swapped_ids(before[both].numpy(), after[both].numpy())

    def _of_routes(self) -> Iterator[RoutingWarning | None]:
        experts = self.routing.experts
        assert experts is not None
        rows = self._gates(experts.bank.rows)  # (M, D)
        if not len(rows) or self.routing.backbone.network.stays_open:
            return
        used = (rows > 0).any(0).cpu().numpy().reshape(-1, len(TRANSFORMS)).any(1)
        self._idle = np.where(used, 0, self._idle + 1)
        step = -(-len(rows) // _ROWS)
        gates = rows[::step].cpu().numpy()
        yield one_route(gates, self._exists)
        yield gates_open(gates, self._exists)
        yield gates_alike(gates)
        yield unused_cells(self._idle, names=self._names)

    def _gates(self, rows: Tensor) -> Tensor:
        return rows if self.routing.clustering.gates == "after" else rows.tanh().relu()

    def _of_costs(self) -> Iterator[RoutingWarning | None]:
        now, cost = self.trainer.iter, self.routing.cost
        if cost is not None:
            # Its memory needs some time after the ramp.
            share = self._figure("train/real_share")
            settled = cost.target.progress(now - 4 * cost.target.memory) >= 1.0
            if settled and share is not None:
                yield off_target("cost_target", share, cost.share)
        budget = self.routing.budget
        share = self._figure("train/expected_share")
        settled = now >= budget.start + budget.length + (self.max_iter - budget.start) // 2
        if cost is None and budget.weight > 0 and settled and share is not None:
            yield off_target("budget", share, self.routing.budget_target)

    def _figure(self, name: str) -> float | None:
        found = self.trainer.storage.histories().get(name)
        return None if found is None else float(found.median(_WINDOW))
