"""The verb that sets the cost of a trained model, without training."""

from __future__ import annotations

import argparse

from ..command_line import (
    Command,
    Parser,
    above,
    add_config_options,
    at_least,
    config_pairs,
    use_config_file,
)


def _options(parser: Parser) -> None:
    add_config_options(
        parser,
        weights="checkpoint of the trained model",
        output="folder for model_final.pth, config.yaml and calibration.json",
        output_default="output/calibrated",
    )
    parser.add_argument(
        "--share",
        type=above(0),
        nargs="+",
        default=[],
        metavar="X",
        help="real cost as a share of the all-open one, both without the stem",
    )
    parser.add_argument(
        "--gflops",
        type=above(0),
        nargs="+",
        default=[],
        metavar="X",
        help="or in 10⁹ multiply-adds of the backbone, stem included, at the size of evaluation",
    )
    parser.add_argument(
        "--each", action="store_true", help="no image may cost more; otherwise it is their mean"
    )
    parser.add_argument(
        "--images",
        type=at_least(1),
        default=200,
        metavar="N",
        help="training images to calibrate on; default: 200",
    )
    parser.add_argument("--no-evaluation", action="store_true", help="do not ask what it costs")


def _check(parser: Parser, args: argparse.Namespace) -> None:
    if bool(args.share) == bool(args.gflops):
        parser.error("name costs by one of --share and --gflops")


def _run(args: argparse.Namespace) -> None:
    use_config_file(args)
    from ..engine import load_config
    from ..engine.calibration import CostGoal
    from ..engine.cost_search import calibrate_checkpoint, calibration_table

    unit = "share" if args.share else "gflops"
    goals = [CostGoal(cost, unit, args.each) for cost in args.share or args.gflops]
    cfg = load_config(args.config_file, config_pairs(args))
    evaluate = not args.no_evaluation
    rows = calibrate_checkpoint(cfg, goals, args.output, images=args.images, evaluate=evaluate)
    print(calibration_table(rows))
    print(f"\nThe model is in {args.output}; it runs by its config.yaml.", end="")
    print(" MODEL.ROUTING.DIAL, 0 to 1, chooses its cost." if len(goals) > 1 else "")


CALIBRATE = Command(
    summary="set the real cost of a trained model without training; print what that costs",
    example="--weights output/mine/model_final.pth --share 0.7 --output output/cheaper",
    options=_options,
    run=_run,
    about="""
What gates open least is closed. With several costs the checkpoint gets a dial between them, which
MODEL.ROUTING.DIAL turns, or Predictor.turn_dial in a program.""",
    check=_check,
)
