#!/usr/bin/env python3
"""Generates drawn scenes in the layout of COCO 2017; see datasets/README.md."""

from __future__ import annotations

import argparse
import sys

import _environment  # noqa: F401

from divdr.command_line import report_errors
from drawn.shapes_coco import make_shapes_coco


@report_errors
def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="gets a folder 'coco'")
    parser.add_argument("--train", type=int, default=60, help="number of training images")
    parser.add_argument("--val", type=int, default=20, help="number of validation images")
    parser.add_argument("--size", type=int, default=160, help="longer side in pixels")
    parser.add_argument("--seed", type=int, default=0, help="chooses the scenes")
    parser.add_argument("--workers", type=int, help="number of processes; all cores if not given")
    options = parser.parse_args(arguments)
    make_shapes_coco(
        options.output,
        train=options.train,
        val=options.val,
        size=options.size,
        seed=options.seed,
        workers=options.workers,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
