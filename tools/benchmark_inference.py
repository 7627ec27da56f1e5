#!/usr/bin/env python
"""Time a network in evaluation beside its plans: interleaved in one process, median milliseconds.

    python tools/benchmark_inference.py --layers 16 --channels 64 --size 512 1024 --closed 0 0.8

Weights are random; a share of the gates is closed by setting the last biases, so that with several
images each takes its own route.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from tabulate import tabulate

from divdr.inference import InferencePlan
from divdr.routing import DynamicRoutingNetwork, Routing, RoutingSpace


def images(count: int, height: int, width: int) -> torch.Tensor:
    """Noise of different brightness and grain, (count, 3, height, width)."""
    grain, level = torch.rand(count, 1, 1, 1) + 0.5, torch.randn(count, 3, 1, 1)
    return torch.randn(count, 3, height, width) * grain + level


def close_gates(network: DynamicRoutingNetwork, share: float, x: torch.Tensor) -> None:
    """Let every gate close for about ``share`` of the images; one image: ``share`` of its gates."""
    cells = list(network.cells())
    if cells[0].gate is None:
        return
    for cell in cells:
        torch.nn.init.normal_(cell.gate.predict.weight, std=1.0 if len(x) > 1 else 0.0)
        torch.nn.init.zeros_(cell.gate.predict.bias)
    if len(x) == 1:
        for cell in cells:
            shut = torch.rand(cell.gate.predict.bias.shape) < share
            cell.gate.predict.bias.data = torch.where(shut, -1.5, 1.5).to(x.device)
        return
    everything = torch.zeros(len(x), network.space.num_cells, 3, device=x.device)
    for cell in cells:
        everything[:, cell.node.index, list(cell.node.transforms)] = 1.0
    logits = network(x, everything.flatten(1))[1].logits.unflatten(1, (-1, 3))
    for cell in cells:
        here = logits[:, cell.node.index, list(cell.node.transforms)]
        cut = torch.quantile(here, share, dim=0) if share > 0 else here.amin(dim=0) - here.std()
        cell.gate.predict.bias.data = -cut


def medians(functions: dict[str, Callable], rounds: int, device: str) -> dict[str, float]:
    """Seconds of each function, called in turns."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first one warms up
                times[name].append(time.perf_counter() - start)
    return {name: float(torch.tensor(values).median()) for name, values in times.items()}


def rows(args: argparse.Namespace, share: float) -> list[tuple]:
    """Table rows of one share of closed gates."""
    torch.manual_seed(0)
    space = RoutingSpace.build(args.layers, args.scales)
    network = DynamicRoutingNetwork(space, channels=args.channels, gate=args.gate)
    network = network.eval().to(args.device)
    x = images(args.batch, *args.size).to(args.device)
    close_gates(network, share, x)
    plan = InferencePlan(network)
    _, record = plan(x)
    functions: dict[str, Callable[[], tuple[list, Routing]]] = {
        "reference": partial(network, x),
        "plan": partial(plan, x),
        "plan, fixed route": partial(plan, x, record.activations),
    }
    for name in args.dtype:
        dtype = getattr(torch, name)
        functions[f"plan, {name}"] = partial(InferencePlan(network, dtype=dtype), x)
        functions[f"plan, {name}, fixed route"] = partial(
            functions[f"plan, {name}"], record.activations
        )
    seconds = medians(functions, args.rounds, args.device)
    table = []
    for name, function in functions.items():
        gmacs = float(function()[1].real_cost.sum()) / 1e9
        ratio = seconds["reference"] / seconds[name]
        row = (f"{share:.0%}", name, 1e3 * seconds[name], ratio, gmacs, gmacs / seconds[name])
        table.append(row)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--scales", type=int, default=4)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--size", type=int, nargs=2, default=[256, 512], help="height width")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--gate", default="small", choices=["small", "full", "none"])
    parser.add_argument(
        "--closed", type=float, nargs="+", default=[0.0, 0.8], help="shares of gates closed"
    )
    parser.add_argument("--dtype", nargs="*", default=["bfloat16"], help="other precisions")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    with torch.inference_mode():
        table = [row for share in args.closed for row in rows(args, share)]
    headers = ("closed", "", "ms", "times faster", "GMAC", "GMAC/s")
    formats = ("g", "g", ".1f", ".2f", ".2f", ".1f")
    print(tabulate(table, headers=headers, floatfmt=formats, tablefmt="github"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
