"""Steps of training, the published way and divdr's own, taking turns on one batch.

A step is forward, backward and an update by SGD with momentum. Its learning rate is 0, so that
gates stay as closed as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch import Tensor

from ..routing.cost import CostTable, cost_table
from ..routing.network import DynamicRoutingNetwork
from ..routing.record import Routing
from .cases import Case, close_gates
from .figures import Line
from .memory import LiveBytes
from .published_run import PublishedRun
from .run_modes import Against
from .timing import Times, in_turns

DENSE = "dense"
CONDITIONAL = "conditional"
PUBLISHED = "published"
MODES = (PUBLISHED, DENSE, CONDITIONAL)

_BACKWARD = 2  # multiply-adds of a backward pass over those of its forward pass
_HEADERS = (
    "s per step",
    "times faster",
    "10⁹ multiply-adds",
    "10⁹ a second",
    "of peak",
    "live tensors at most, MiB",
)


@dataclass(frozen=True)
class StepMeasurement:
    """What the steps of one way took.

    Attributes:
        mode: its name.
        half: whether autocast was on, in bfloat16.
        times: of whole steps.
        faster: how many times faster than the published way in float32, by medians.
        gmacs: multiply-adds of a step, 10⁹; None if unknown.
        live: bytes of tensors of a step that lived at once at most.
    """

    mode: str
    half: bool
    times: Times
    faster: float
    gmacs: float | None
    live: int

    @property
    def name(self) -> str:
        """The way and its precision."""
        return _name(self.mode, self.half)


@dataclass(frozen=True)
class TrainingResult:
    """All ways on one case.

    Attributes:
        case: what ran; ``closed`` is the share of gates that are closed for all images.
        rows: one a way and precision.
    """

    case: Case
    rows: tuple[StepMeasurement, ...]


def measure_training(
    case: Case, *, rounds: int, device: torch.device | str, against: Against | None = None
) -> TrainingResult:
    """Time the steps of every way, in turns.

    Args:
        case: networks and batch; gates close for all images alike.
        rounds: steps of each that count.
        device: where.
        against: a step of one's own, FUNCTION(x) or FUNCTION(x, network), the network in training.

    Raises:
        ConfigError: that step failed.
    """
    network, x = case.build(device)
    close_gates(network, case.closed, x[:1], seed=case.seed)
    with torch.no_grad():
        record = network(x)[1]
    macs = _forward_macs(network, record)
    steps: dict[tuple[str, bool], Callable[[], object]] = {}
    for half in (False, True):
        for mode in MODES:
            steps[mode, half] = _Step(_way(case, network, mode), x, half)
    names = {key: _name(*key) for key in steps}
    timed = {names[key]: step for key, step in steps.items()}
    if against is not None:
        timed[against.name] = against.bind(_way(case, network, DENSE)[0], x)
    live = {name: _live_bytes(step) for name, step in timed.items()}
    times = in_turns(timed, rounds, device)
    slowest = times[names[PUBLISHED, False]].median
    rows = [
        StepMeasurement(
            mode=mode,
            half=half,
            times=times[name],
            faster=slowest / times[name].median,
            gmacs=(1 + _BACKWARD) * len(x) * macs[mode] / 1e9,
            live=live[name],
        )
        for (mode, half), name in names.items()
    ]
    if against is not None:
        taken, name = times[against.name], against.name
        faster = slowest / taken.median
        rows.append(StepMeasurement(name, False, taken, faster, None, live[name]))
    return TrainingResult(case, tuple(rows))


def _name(mode: str, half: bool) -> str:
    return f"{mode}, bf16" if half else mode


Forward = Callable[[Tensor], tuple[list[Tensor], Routing]]


def _way(
    case: Case, network: DynamicRoutingNetwork, mode: str
) -> tuple[DynamicRoutingNetwork, Forward]:
    """A copy of the network in training, and what runs it."""
    device = next(network.parameters()).device
    own = case.empty(conditional_training=mode == CONDITIONAL).to(device)
    own.load_state_dict(network.state_dict())
    if mode == PUBLISHED:
        run = PublishedRun(own.train())
        return run.network, run
    return own.train(), own


class _Step:
    """One step of training, to be called again and again."""

    def __init__(self, way: tuple[DynamicRoutingNetwork, Forward], x: Tensor, half: bool) -> None:
        module, self._forward = way
        self._x, self._half = x, half
        self._optimizer = torch.optim.SGD(module.parameters(), lr=0.0, momentum=0.9)
        with torch.no_grad():
            self._weights = [torch.randn_like(maps) for maps in self._forward(x)[0]]

    def __call__(self) -> None:
        with torch.autocast(self._x.device.type, torch.bfloat16, enabled=self._half):
            maps, record = self._forward(self._x)
        fit = sum((m * w).mean() for m, w in zip(maps, self._weights, strict=True))
        (fit + record.expected_cost.mean() / record.full_cost).backward()
        self._optimizer.step()
        self._optimizer.zero_grad()


def _live_bytes(step: Callable[[], object]) -> int:
    step()  # momentum and tables of costs stay
    with LiveBytes() as live:
        step()
    return live.peak


def _forward_macs(network: DynamicRoutingNetwork, record: Routing) -> dict[str, float]:
    """Multiply-adds of a forward of one image by way; all images take one route."""
    table = cost_table(network, *record.size)
    return {
        PUBLISHED: _all_of_reached(table, record),
        DENSE: _all_of_reached(table, record),
        CONDITIONAL: float(record.real_cost[0]),
    }


def _all_of_reached(table: CostTable, record: Routing) -> float:
    """Every operation and transform of the cells that are reached, open or not."""
    cells = [table.initial]
    cells += [c for c, here in zip(table.cells, record.reached[0].tolist(), strict=True) if here]
    each = [c.cell + c.gate + sum(t or 0.0 for t in c.transforms) for c in cells]
    return table.stem + sum(each)


def training_table(result: TrainingResult, peaks: Mapping[str, float]) -> str:
    """All ways of one case; multiply-adds of a step count its backward pass as two forwards."""
    case = result.case
    title = (
        f"training, batch {case.batch}, {case.size[0]}×{case.size[1]}, {case.closed:.0%} of the "
        "gates closed"
    )
    table = [[row.name, *_numbers(row, peaks).values()] for row in result.rows]
    formats = ("g", ".3f", ".2f", ".1f", ".1f", ".0%", ".0f")
    text = tabulate(table, headers=("", *_HEADERS), floatfmt=formats, tablefmt="github")
    return f"{title}\n\n{text}\n"


def training_fits(results: Sequence[TrainingResult]) -> str:
    """Lines of milliseconds an image over multiply-adds; of ways with three costs or more."""
    points: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for result in results:
        for row in result.rows:
            if row.gmacs is not None:
                share = 1 / result.case.batch
                point = (row.gmacs * share, 1e3 * row.times.median * share)
                points.setdefault((result.case.batch, row.name), []).append(point)
    table = []
    for (batch, name), pairs in points.items():
        costs, milliseconds = zip(*sorted(pairs), strict=True)
        line = Line(name, batch, costs, milliseconds)
        if line.fit is not None:
            table.append((batch, name, line.rate, line.fit[1]))
    if not table:
        return ""
    headers = ("batch", "", "10⁹ a second by slope", "ms an image at none")
    return tabulate(table, headers=headers, floatfmt=".1f", tablefmt="github") + "\n"


def training_numbers(
    results: Sequence[TrainingResult], peaks: Mapping[str, float]
) -> list[dict[str, object]]:
    """Everything measured, ready for JSON."""
    return [
        {
            **vars(result.case),
            "ways": [
                {"way": row.name, **_numbers(row, peaks), "seconds": row.times.summary()}
                for row in result.rows
            ],
        }
        for result in results
    ]


def _numbers(row: StepMeasurement, peaks: Mapping[str, float]) -> dict[str, float | None]:
    rate = None if row.gmacs is None else row.gmacs / row.times.median
    peak = peaks["bfloat16" if row.half else "float32"] / 1e9
    share = None if rate is None else rate / peak
    values = (row.times.median, row.faster, row.gmacs, rate, share, row.live / 2**20)
    return dict(zip(_HEADERS, values, strict=True))
