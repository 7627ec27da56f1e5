#!/usr/bin/env python
"""Table of finished detector runs: AP, GFLOPs of backbone and neck, seconds an image.

python tools/compare_detectors.py output/neon_trees/{divdr,dr,resnet18,resnet50}
"""

import argparse

import _environment  # noqa: F401

from divdr.engine import report_errors
from divdr.engine.compare import compare_runs, comparison_table
from divdr.engine.setup import at_least


@report_errors
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="OUTPUT_DIR of runs of tools/train_net.py")
    parser.add_argument("--images", type=at_least(1), default=12, help="test images to time")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="times each")
    args = parser.parse_args()
    print(comparison_table(compare_runs(args.runs, images=args.images, rounds=args.rounds)))


if __name__ == "__main__":
    main()
