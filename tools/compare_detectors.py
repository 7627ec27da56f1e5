#!/usr/bin/env python
"""Table of finished detector runs: AP, GFLOPs of backbone and neck, seconds an image.

python tools/compare_detectors.py output/neon_trees/{divdr,dr,resnet18,resnet50}
"""

import argparse
import sys

import _environment  # noqa: F401

from divdr.command_line import Command, Parser, at_least


def options(parser: Parser) -> None:
    parser.add_argument("runs", nargs="+", help="OUTPUT_DIR of runs of tools/train_net.py")
    parser.add_argument("--images", type=at_least(1), default=12, help="test images to time")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="times each")


def run(args: argparse.Namespace) -> None:
    from divdr.engine.compare import compare_runs, comparison_table

    print(comparison_table(compare_runs(args.runs, images=args.images, rounds=args.rounds)))


COMMAND = Command(
    summary="table of finished detector runs: AP, GFLOPs of backbone and neck, seconds an image",
    example="output/neon_trees/divdr output/neon_trees/dr",
    options=options,
    run=run,
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
