#!/usr/bin/env python
"""Trains mixtures on Fashion-MNIST in memory, and networks of equal cost beside them.

    python datasets/prepare_fashion_mnist.py --output data
    python tools/measure_classifiers.py data/fashion_mnist --seed 0 --output output/classifiers
    python tools/measure_classifiers.py --output output/classifiers         # tables of all seeds

The first two write figures of one seed, seed_0.json; the last writes table.md and curve.png. They
are of single-gated mixtures, and with --depth of per-example routing in cells of choice blocks.
"""

import argparse
import json
from pathlib import Path

import _environment  # noqa: F401

from divdr.engine import report_errors
from divdr.engine.setup import at_least, listed
from divdr.studies.classifier_tables import PAIRS, draw_curves, table
from divdr.studies.classifiers import Lengths, single_gate_figures
from divdr.studies.routing_depth import depth_figures, depth_pairs


@report_errors
def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    lengths = {"base": 3750, "gate": 235, "experts": 1400, "stacking": 200}
    for name, value in lengths.items():
        parser.add_argument(f"--{name}", type=at_least(1), default=value, help="iterations")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.data is not None:
        chosen = Lengths(**{name: getattr(options, name) for name in lengths})
        if options.depth:
            figures = depth_figures(options.data, options.seed, options.routing, options.depth)
        else:
            figures = single_gate_figures(options.data, options.seed, chosen)
        path = options.output / f"seed_{options.seed}.json"
        path.write_text(json.dumps(figures, indent=1))
        return
    seeds = [json.loads(path.read_text()) for path in sorted(options.output.glob("seed_*.json"))]
    text = table(seeds, depth_pairs(options.depth) if options.depth else PAIRS)
    (options.output / "table.md").write_text(text)
    if not options.depth:
        draw_curves(seeds, options.output / "curve.png")
    print(text)


if __name__ == "__main__":
    main()
