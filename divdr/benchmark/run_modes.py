"""The execution modes of one network that a benchmark compares, measured on one case."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..errors import ConfigError
from ..inference.captured import CapturedRoute
from ..inference.plan import InferencePlan
from ..inference.route import Route
from ..routing.network import DynamicRoutingNetwork
from ..routing.record import Routing
from .cases import Case, closed_share
from .published_run import PublishedRun
from .timing import Times, in_turns

PUBLISHED = "published"
IMAGE_BY_IMAGE = "published, image by image"
NETWORK = "network"
PLAN = "plan"
SPECIALISED = "specialised plan"
STATIC = "fixed route"
PLAN_BF16 = "plan, bf16"
STATIC_BF16 = "fixed route, bf16"

Result = tuple[list[Tensor], Routing]
"""Maps and record, as a network returns them."""


class Against:
    """``MODULE:FUNCTION`` by name: FUNCTION(x), or FUNCTION(x, network) if it takes two parameters.

    MODULE may lie in the current folder.

    Args:
        name: as above.

    Raises:
        ConfigError: there is no such callable, or its module cannot be imported.
    """

    def __init__(self, name: str) -> None:
        module, colon, function = name.partition(":")
        if not (module and colon and function):
            raise ConfigError(f"--against wants MODULE:FUNCTION, not {name!r}")
        self.name = name
        self._function: Callable[..., object] = _imported(name, module, function)
        self._takes_network = _parameters(self._function) >= 2

    def bind(self, network: DynamicRoutingNetwork, x: Tensor) -> Callable[[], object]:
        """The call on one input.

        Raises:
            ConfigError: (from the call) the function failed.
        """
        arguments = (x, network) if self._takes_network else (x,)

        def call() -> object:
            try:
                return self._function(*arguments)
            except Exception as error:
                raise ConfigError(f"{self.name} failed: {_in_one_line(error)}") from error

        return call


def _imported(name: str, module: str, function: str) -> Callable[..., object]:
    sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # a module may fail in any way while it is imported
        raise ConfigError(f"{name} cannot be imported: {_in_one_line(error)}") from error
    finally:
        sys.path.remove(os.getcwd())
    if not callable(found):
        raise ConfigError(f"{name} is not a function but a {type(found).__name__}")
    return found


def _parameters(function: Callable[..., object]) -> int:
    """How many positional arguments it wants; optional ones do not count, 1 if it does not tell."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in parameters)


def _in_one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def fixed_route(plan: InferencePlan, x: Tensor, record: Routing) -> Callable[[], Result]:
    """A call that runs images along the routes of a record, without deciding.

    One image on CUDA is captured as a graph, see ``divdr.inference.CapturedRoute``. Several images,
    each with its own route, go through the plan, whose initial cell then decides for itself.

    Args:
        plan: of the network.
        x: (N, in_channels, H, W).
        record: of these images.
    """
    if len(x) > 1:
        return lambda: plan(x, record.activations)
    route = Route.of(plan.space, record)
    return partial(CapturedRoute(plan, x, route), x) if x.is_cuda else partial(plan, x, route)


@dataclass(frozen=True)
class Measurement:
    """What one execution mode of a case took.

    Attributes:
        mode: its name.
        times: of the whole batch.
        faster: how many times faster than the published mode (batched), by medians.
        expected_gflops: expected cost, mean of the images, 10⁹ multiply-adds; None if unknown.
        real_gflops: likewise real cost.
        error: largest difference of a map from the network's, over the network's largest number.
            For the published mode on a batch of mixed routes it is no rounding error: there the
            published mode computes something else.
        half: whether the maps are bfloat16.
    """

    mode: str
    times: Times
    faster: float
    expected_gflops: float | None
    real_gflops: float | None
    error: float | None
    half: bool


@dataclass(frozen=True)
class CaseResult:
    """Rows of one case.

    Attributes:
        case: what ran.
        closed: share of closed gates that came about.
        rows: one a mode.
    """

    case: Case
    closed: float
    rows: tuple[Measurement, ...]

    def row(self, mode: str) -> Measurement | None:
        """The row of a mode, None if that did not run."""
        return next((row for row in self.rows if row.mode == mode), None)

    def per_image(self, mode: str) -> float:
        """Median seconds per image.

        Raises:
            KeyError: that mode did not run.
        """
        row = self.row(mode)
        if row is None:
            raise KeyError(mode)
        return row.times.median / self.case.batch


@torch.no_grad()
def measure(
    case: Case, *, rounds: int, device: torch.device | str, against: Against | None = None
) -> CaseResult:
    """Time every execution mode of a case, in turns.

    Raises:
        ConfigError: the callable to compare with failed.
    """
    network, x = case.build(device)
    plan, half = InferencePlan(network), InferencePlan(network, dtype=torch.bfloat16)
    published = PublishedRun(network)
    wanted, record = network(x)
    functions: dict[str, Callable[[], Result]] = {PUBLISHED: partial(published, x)}
    if case.batch > 1:
        functions[IMAGE_BY_IMAGE] = partial(published.image_by_image, x)
    functions[NETWORK] = partial(network, x)
    functions[PLAN] = partial(plan, x)
    functions[SPECIALISED] = partial(plan.specialise([x]), x)
    functions[STATIC] = fixed_route(plan, x, record)
    functions[PLAN_BF16] = partial(half, x)
    functions[STATIC_BF16] = fixed_route(half, x, record)
    facts = {mode: _facts(function, wanted) for mode, function in functions.items()}
    timed: dict[str, Callable[[], object]] = {**functions}
    if against is not None:
        timed[against.name] = against.bind(network, x)
    times = in_turns(timed, rounds, device)
    rows = []
    for mode, taken in times.items():
        faster = times[PUBLISHED].median / taken.median
        expected, real, error = facts.get(mode, (None, None, None))
        in_half = mode in (PLAN_BF16, STATIC_BF16)
        rows.append(Measurement(mode, taken, faster, expected, real, error, in_half))
    return CaseResult(case, closed_share(network, record), tuple(rows))


def _facts(function: Callable[[], Result], wanted: list[Tensor]) -> tuple[float, float, float]:
    """Expected and real cost per image, 10⁹ multiply-adds, and the largest error."""
    maps, record = function()
    expected, real = record.expected_cost.mean(), record.real_cost.mean()
    return float(expected) / 1e9, float(real) / 1e9, _error(maps, wanted)


def _error(maps: list[Tensor], wanted: list[Tensor]) -> float:
    largest = max(float(m.abs().max()) for m in wanted)
    worst = max(float((a - b).abs().max()) for a, b in zip(maps, wanted, strict=True))
    return worst / largest if largest else worst
