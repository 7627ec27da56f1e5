#!/usr/bin/env python3
"""Generates street scenes in the layout of Cityscapes; see datasets/README.md."""

from __future__ import annotations

import argparse
import sys

import _environment  # noqa: F401

from divdr.command_line import report_errors
from drawn.files import available_cores
from drawn.streetscapes import make_streetscapes


@report_errors
def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="gets a folder 'cityscapes'")
    parser.add_argument("--train", type=int, default=240, help="number of training images")
    parser.add_argument("--val", type=int, default=60, help="number of validation images")
    parser.add_argument("--height", type=int, default=256, help="height of the images in pixels")
    parser.add_argument("--width", type=int, default=512, help="width of the images in pixels")
    parser.add_argument(
        "--unequal",
        type=float,
        metavar="U",
        help="how much scenes differ in what there is to see: 0 all alike, 1 from an empty highway "
        "to a dense town; left out, four kinds of scene by day, night and rain",
    )
    parser.add_argument("--seed", type=int, default=0, help="chooses the scenes")
    parser.add_argument(
        "--workers", type=int, default=available_cores(), help="number of processes"
    )
    options = parser.parse_args(arguments)
    make_streetscapes(
        options.output,
        train=options.train,
        val=options.val,
        height=options.height,
        width=options.width,
        seed=options.seed,
        unequal=options.unequal,
        workers=options.workers,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
