#!/usr/bin/env python
"""Time K-means on gate-like activations beside scikit-learn's, with the ratio of inertias.

python tools/benchmark_kmeans.py --rows 3000 20000 --device cpu
"""

import argparse
import sys
import time

import _environment  # noqa: F401
import torch
from tabulate import tabulate

from divdr.engine import report_errors
from divdr.engine.setup import at_least, device
from divdr.experts import kmeans


def activations(rows: int, columns: int, clusters: int, place: str) -> torch.Tensor:
    """Gate-like rows, half of the gates closed, the others near 0.9; 0 clusters: no structure."""
    generator = torch.Generator().manual_seed(rows + clusters)
    patterns = (torch.rand(max(1, clusters), columns, generator=generator) > 0.5).float() * 1.4
    which = torch.randint(0, len(patterns), (rows,), generator=generator)
    noise = torch.randn(rows, columns, generator=generator) * (0.2 if clusters else 1.0)
    return torch.relu(torch.tanh(patterns[which] + noise)).to(place)


def timed(place: str, **options) -> tuple:
    """(seconds, result) of one call."""
    start = time.perf_counter()
    result = kmeans(**options)
    if place == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


@report_errors
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=at_least(1), nargs="+", default=[3000, 20000])
    parser.add_argument("--columns", type=at_least(1), default=198)
    parser.add_argument("--experts", type=at_least(1), default=4)
    parser.add_argument("--restarts", type=at_least(1), default=10)
    parser.add_argument(
        "--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu"
    )
    args = parser.parse_args()
    if min(args.rows) < args.experts:
        parser.error(f"--rows {min(args.rows)}: fewer than the {args.experts} experts")
    table = []
    for rows in args.rows:
        for clusters in (args.experts, 0):
            x = activations(rows, args.columns, clusters, args.device)
            options = {"k": args.experts, "restarts": args.restarts}
            ours, found = timed(args.device, x=x, **options)
            theirs, reference = timed("cpu", x=x, backend="sklearn", **options)
            warm, _ = timed(args.device, x=x, k=args.experts, init=found.centres)
            kind = "clustered" if clusters else "no clusters"
            ratio = found.inertia / reference.inertia
            table.append((rows, args.columns, args.experts, kind, ours, theirs, warm, ratio))
    headers = ("rows", "columns", "K", "data", "divdr s", "scikit-learn s", "warm s", "inertia")
    print(tabulate(table, headers=headers, floatfmt=(*["g"] * 4, ".2f", ".2f", ".2f", ".6f")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
