#!/usr/bin/env python
"""Make a single-gated mixture of experts of a finished model, and show what it reaches over τ.

    python tools/make_mixture.py --config-file configs/demo/divdr.yaml \\
        --weights output/demo/divdr/model_final.pth --output output/demo/mixture

The finished model stays as it is: a gate and experts, copies of its box head's or segmentation
head's last layers (of a classifier, of its later stages), learn beside it. Writes the mixture's
config.yaml and start.pth, what training writes, and of the evaluation curve.json and curve.png.
"""

import argparse
import os
import sys

import _environment  # noqa: F401

from divdr.command_line import (
    Command,
    Parser,
    add_config_options,
    at_least,
    config_pairs,
    listed,
    use_config_file,
)


def options(parser: Parser) -> None:
    add_config_options(
        parser, weights="checkpoint of the finished model", output="folder for the mixture"
    )
    parser.add_argument("--experts", type=at_least(1), default=5, help="K, number of experts")
    parser.add_argument(
        "--iterations",
        type=at_least(2),
        default=0,
        help="of the mixture's training; a third of the finished model's",
    )
    parser.add_argument(
        "--thresholds",
        type=listed(at_least(0, float)),
        metavar="TAU,TAU,...",
        help="of the curve, for both rules of the early exit; nine for each",
    )
    parser.add_argument(
        "--start-only",
        action="store_true",
        help="only write what tools/train_net.py can train, on several GPUs for example",
    )


def check(parser: Parser, args: argparse.Namespace) -> None:
    if not args.weights or not args.output:
        parser.error("the following arguments are required: --weights, --output")


def run(args: argparse.Namespace) -> None:
    use_config_file(args)
    from divdr.engine import load_config
    from divdr.engine.make_mixture import make_start, train_and_evaluate
    from divdr.engine.mixture_curve import THRESHOLDS, mixture_table, write_curve
    from divdr.visualization.tradeoff import draw_mixture_curve

    thresholds = dict.fromkeys(THRESHOLDS, args.thresholds) if args.thresholds else THRESHOLDS
    cfg = load_config(args.config_file, config_pairs(args))
    folder = args.output
    made, finished = make_start(
        cfg, args.experts, folder, iterations=args.iterations, overrides=args.opts
    )
    if args.start_only:
        print(f"tools/train_net.py --config-file {folder}/config.yaml trains the mixture")
        return
    point, points = train_and_evaluate(cfg, made, finished, thresholds)
    write_curve(folder, point, points)
    draw_mixture_curve(os.path.join(folder, "curve.png"), points, {"finished model": point})
    print(mixture_table(point, points))


COMMAND = Command(
    summary="make a single-gated mixture of experts of a finished model, and show what it reaches",
    example="--weights output/demo/divdr/model_final.pth --output output/demo/mixture",
    options=options,
    run=run,
    about=(__doc__ or "").partition("\n\n")[2].partition("\n\n")[2],
    check=check,
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
