#!/usr/bin/env python3
"""Pastes Fashion-MNIST's photographs into scenes; see datasets/README.md."""

from __future__ import annotations

import argparse
import sys

import _environment  # noqa: F401

from divdr.engine import report_errors
from drawn.fashion_scenes import make_fashion_scenes
from drawn.files import available_cores


@report_errors
def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="gets a folder 'fashion_scenes'"
    )
    parser.add_argument(
        "--source",
        required=True,
        metavar="DIR",
        help="folder with Fashion-MNIST's files (datasets/prepare_fashion_mnist.py)",
    )
    parser.add_argument("--train", type=int, default=240, help="number of training images")
    parser.add_argument("--val", type=int, default=60, help="number of validation images")
    parser.add_argument("--height", type=int, default=128, help="height of the images in pixels")
    parser.add_argument("--width", type=int, default=256, help="width of the images in pixels")
    parser.add_argument(
        "--unequal",
        type=float,
        default=1.0,
        help="how much scenes differ in what there is to see: 0 all alike, 1 from two large "
        "garments to twenty-four small ones",
    )
    parser.add_argument(
        "--backgrounds", default="", metavar="DIR", help="photographs to paste into; else noise"
    )
    parser.add_argument("--seed", type=int, default=0, help="chooses the scenes")
    parser.add_argument(
        "--workers", type=int, default=available_cores(), help="number of processes"
    )
    options = vars(parser.parse_args(arguments))
    make_fashion_scenes(options.pop("output"), options.pop("source"), **options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
