#!/usr/bin/env python
"""Trains mixtures on Fashion-MNIST in memory, and networks of equal cost beside them.

    python datasets/prepare_fashion_mnist.py --output data
    python tools/measure_classifiers.py data/fashion_mnist --seed 0 --output output/classifiers
    python tools/measure_classifiers.py --output output/classifiers         # tables of all seeds

The second writes figures of one seed, seed_0.json; the last writes table.md and curve.png. They
are of single-gated mixtures; with --depth of per-example routing in cells of choice blocks; with
--systems of all systems beside single networks of several sizes. The latter goes on where it was
interrupted, and --times measures milliseconds of what it has trained.
"""

import argparse
import json
import sys
from pathlib import Path

import _environment  # noqa: F401

from divdr.command_line import Command, Parser, at_least, listed

LENGTHS = {"base": 3750, "gate": 235, "experts": 1400, "stacking": 200}


def options(parser: Parser) -> None:
    parser.add_argument("data", nargs="?", type=Path, help="folder with Fashion-MNIST's files")
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--depth",
        type=listed(at_least(1)),
        default=[],
        metavar="CELLS,CELLS,...",
        help="per-example routing in so many cells, in place of single-gated mixtures",
    )
    parser.add_argument("--routing", type=at_least(1), default=1000, help="iterations of --depth")
    parser.add_argument(
        "--systems",
        type=at_least(1),
        default=0,
        metavar="ITERATIONS",
        help="all systems in place of single-gated mixtures, each so long; 4690 are ten epochs",
    )
    parser.add_argument(
        "--size",
        type=at_least(7),
        default=14,
        metavar="PIXELS",
        help="rows and columns of an image of --systems; the photographs have 28",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="SYSTEM",
        help="train this one of --systems alone; may be given again",
    )
    parser.add_argument("--times", action="store_true", help="milliseconds of --systems, trained")
    for name, value in LENGTHS.items():
        parser.add_argument(f"--{name}", type=at_least(1), default=value, help="iterations")


def run(args: argparse.Namespace) -> None:
    from divdr.studies.classifier_systems import (
        SYSTEM_PAIRS,
        SYSTEMS,
        draw_systems,
        system_figures,
        system_table,
        system_times,
    )
    from divdr.studies.classifier_tables import PAIRS, draw_curves, pairs_table, table
    from divdr.studies.classifiers import Lengths, single_gate_figures
    from divdr.studies.routing_depth import depth_figures, depth_pairs

    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / f"seed_{args.seed}.json"
    if args.data is not None:
        chosen = Lengths(**{name: getattr(args, name) for name in LENGTHS})
        if args.times:
            times = system_times(args.data, args.output, seed=args.seed, size=args.size)
            write(args.output / "times.json", times)
        elif args.systems:
            system_figures(
                args.data,
                args.seed,
                args.systems,
                args.output,
                size=args.size,
                names=args.only or tuple(SYSTEMS),
                finished=json.loads(path.read_text()) if path.is_file() else {},
                done=lambda figures: write(path, figures),
            )
        elif args.depth:
            write(path, depth_figures(args.data, args.seed, args.routing, args.depth))
        else:
            write(path, single_gate_figures(args.data, args.seed, chosen))
        return
    seeds = [json.loads(path.read_text()) for path in sorted(args.output.glob("seed_*.json"))]
    if args.systems:
        kept = args.output / "times.json"
        times = json.loads(kept.read_text()) if kept.is_file() else {}
        text = system_table(seeds, times) + "\n" + pairs_table(seeds, SYSTEM_PAIRS)
        draw_systems(seeds, times, args.output / "curve.png")
    else:
        text = table(seeds, depth_pairs(args.depth) if args.depth else PAIRS)
        if not args.depth:
            draw_curves(seeds, args.output / "curve.png")
    (args.output / "table.md").write_text(text)
    print(text)


def write(path: Path, figures: object) -> None:
    path.write_text(json.dumps(figures, indent=1))


COMMAND = Command(
    summary="train mixtures on Fashion-MNIST in memory, and networks of equal cost beside them",
    example="data/fashion_mnist --seed 0 --output output/classifiers",
    options=options,
    run=run,
    about=(__doc__ or "").rpartition("\n\n")[2],
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
