"""What backbones that route images through experts tell of their last forward.

N images, E experts of a decision. A backbone makes several decisions, one a routing layer or cell;
the columns of their experts stand one after the other.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from ..moe import Decision

R = TypeVar("R")


@dataclass
class ExpertRecord:
    """Decisions of N images in one forward pass.

    Attributes:
        weights: (n, E) G(x) of each decision, with a graph in training; n is N, or the number of
            images that come to the decision.
        loads: (n, E) likewise, see ``divdr.moe.load_probabilities``.
        ran: (N, ΣE) bool, the experts that ran.
        size: (height, width) of the backbone's input in pixels.
    """

    weights: list[Tensor]
    loads: list[Tensor]
    ran: Tensor
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.ran)

    def mean_ran(self, decisions: Sequence[Decision]) -> list[float]:
        """Experts that ran for an image, by decision, in the mean over the images."""
        return [float(self.ran[:, each.columns].sum(1).float().mean()) for each in decisions]

    def detach(self) -> ExpertRecord:
        """The same numbers without their graph."""
        weights, loads = ([t.detach() for t in part] for part in (self.weights, self.loads))
        return replace(self, weights=weights, loads=loads)


@runtime_checkable
class ExpertRouting(Protocol):
    """A backbone that chooses experts for each image: a module.

    Attributes:
        expert_decisions: all that it makes, in their order; () where its settings have it make
            none.
        expert_record: of this thread's last forward; None before the first, and after
            ``forget_experts``.
    """

    @property
    def expert_decisions(self) -> Sequence[Decision]: ...  # noqa: D102

    @property
    def expert_record(self) -> ExpertRecord | None: ...  # noqa: D102

    def forget_experts(self) -> None:
        """Drop the record."""
        ...


def expert_parts(model: nn.Module) -> list[ExpertRouting]:
    """The parts of a model that choose experts for each image."""

    def found() -> Iterator[ExpertRouting]:
        for module in model.modules():
            if isinstance(module, ExpertRouting) and module.expert_decisions:
                yield module

    return list(found())


class LastRecord(threading.local, Generic[R]):
    """Holds the record of a thread's own last forward.

    A copied model starts without one: its tensors carry a graph.
    """

    def __init__(self) -> None:
        self.record: R | None = None

    def __deepcopy__(self, memo) -> LastRecord[R]:
        return LastRecord()

    def __reduce__(self):
        return (LastRecord, ())
