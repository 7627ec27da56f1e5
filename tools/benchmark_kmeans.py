#!/usr/bin/env python
"""Time K-means on gate-like activations beside scikit-learn's, with the ratio of inertias.

python tools/benchmark_kmeans.py --rows 3000 20000 --device cpu

With --step, the whole of clustering in training, as a share of an iteration: noting each batch's
activations, and every so many iterations all that ClusteringHook does.

python tools/benchmark_kmeans.py --rows 118000 --experts 3 --step 1.0
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import _environment  # noqa: F401

from divdr.command_line import Command, Parser, at_least, available_device, device

if TYPE_CHECKING:  # functions import it, so that --help does not wait for it
    import torch

_CLUSTERINGS = 3


def activations(rows: int, columns: int, clusters: int, place: str) -> torch.Tensor:
    """Gate-like rows, half of the gates closed, the others near 0.9; 0 clusters: no structure."""
    import torch

    generator = torch.Generator().manual_seed(rows + clusters)
    patterns = (torch.rand(max(1, clusters), columns, generator=generator) > 0.5).float() * 1.4
    which = torch.randint(0, len(patterns), (rows,), generator=generator)
    noise = torch.randn(rows, columns, generator=generator) * (0.2 if clusters else 1.0)
    return torch.relu(torch.tanh(patterns[which] + noise)).to(place)


def seconds(place: str, function: Callable[[], object]) -> tuple[float, object]:
    """What a call takes, and what it returns."""
    import torch

    start = time.perf_counter()
    result = function()
    if place == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def against_sklearn(args: argparse.Namespace) -> str:
    """A table of times and inertias."""
    from tabulate import tabulate

    from divdr.experts import kmeans

    table = []
    for rows in args.rows:
        for clusters in (args.experts, 0):
            x = activations(rows, args.columns, clusters, args.device)
            options = {"k": args.experts, "restarts": args.restarts}
            ours, found = seconds(args.device, partial(kmeans, x, **options))
            sklearn = partial(kmeans, x, backend="sklearn", **options)
            theirs, reference = seconds("cpu", sklearn)
            again = partial(kmeans, x, args.experts, init=found.centres)
            warm, _ = seconds(args.device, again)
            kind = "clustered" if clusters else "no clusters"
            ratio = found.inertia / reference.inertia
            table.append((rows, args.columns, args.experts, kind, ours, theirs, warm, ratio))
    headers = ("rows", "columns", "K", "data", "divdr s", "scikit-learn s", "warm s", "inertia")
    return tabulate(table, headers=headers, floatfmt=(*["g"] * 4, ".2f", ".2f", ".2f", ".6f"))


def in_training(rows: int, args: argparse.Namespace) -> tuple:
    """A row of the table of shares."""
    import torch
    from detectron2.utils.events import EventStorage

    from divdr.experts import LocalExperts
    from divdr.modeling import cluster_and_log

    x = activations(rows, args.columns, args.experts, args.device)
    keys = [f"a_data_set_train/{number:012d}" for number in range(rows)]
    options = {"restarts": args.restarts, "partition": args.partition}
    experts = LocalExperts(args.experts, args.columns, **options).to(args.device)
    experts.bank.update(keys, x, 0)
    updates, clusterings = [], []
    generator = torch.Generator().manual_seed(0)
    with EventStorage() as storage:
        for iteration in range(1, _CLUSTERINGS * args.period + 1):
            batch = torch.randint(0, rows, (args.batch,), generator=generator)
            own, names = x[batch.to(x.device)], [keys[image] for image in batch.tolist()]
            note = partial(experts.bank.update, names, own, iteration)
            updates.append(seconds(args.device, note)[0])
            if iteration % args.period == 0:
                hook = partial(cluster_and_log, experts, iteration, storage)
                clusterings.append(seconds(args.device, hook)[0])
    update, first = statistics.mean(updates), clusterings[0]
    again = statistics.median(clusterings[1:])
    more = update + again / args.period
    share = 100 * more / (args.step + more)
    return rows, args.columns, args.experts, 1e3 * update, first, again, 1e3 * more, share


def shares(args: argparse.Namespace) -> str:
    """A table of shares of an iteration."""
    from tabulate import tabulate

    table = [in_training(rows, args) for rows in args.rows]
    names = ("rows", "columns", "K", "bank ms", "first s", "clustering s")
    headers = (*names, "ms an iteration", "share %")
    return tabulate(table, headers=headers, floatfmt=(*["g"] * 3, *[".2f"] * 5))


def options(parser: Parser) -> None:
    parser.add_argument("--rows", type=at_least(1), nargs="+", default=[3000, 20000])
    parser.add_argument("--columns", type=at_least(1), default=198)
    parser.add_argument("--experts", type=at_least(1), default=4)
    parser.add_argument("--restarts", type=at_least(1), default=10)
    parser.add_argument("--device", type=device, help="cuda or cpu; default: cuda if there is one")
    parser.add_argument(
        "--step",
        type=at_least(0, float),
        help="seconds of a training iteration without clustering: show the share of an iteration",
    )
    parser.add_argument("--period", type=at_least(1), default=50, help="with --step: iterations")
    parser.add_argument("--batch", type=at_least(1), default=16, help="with --step: images")
    parser.add_argument(
        "--partition", choices=("kmeans", "mixture"), default="kmeans", help="with --step"
    )


def check(parser: Parser, args: argparse.Namespace) -> None:
    if min(args.rows) < args.experts:
        parser.error(f"--rows {min(args.rows)}: fewer than the {args.experts} experts")


def run(args: argparse.Namespace) -> None:
    args.device = args.device or available_device()
    print(against_sklearn(args) if args.step is None else shares(args))


COMMAND = Command(
    summary="time K-means on gate-like activations beside scikit-learn's, with ratios of inertias",
    example="--rows 3000 20000 --device cpu",
    options=options,
    run=run,
    check=check,
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
