"""Verbs of a run: see that it can be, train, evaluate."""

from __future__ import annotations

import argparse

from ..command_line import (
    Command,
    Parser,
    add_config_options,
    config_pairs,
    use_config_file,
)

# Detectron2's launch finds a free port; for several machines an address must be named.
_ANY_PORT = "auto"


_START = "checkpoint to start from, MODEL.WEIGHTS"
_FOLDER = "folder of the run, OUTPUT_DIR"


def _process_options(parser: Parser) -> None:
    """Detectron2's own, of its ``default_argument_parser``."""
    parser.add_argument(
        "--num-gpus", type=int, default=1, metavar="N", help="processes on each machine; default: 1"
    )
    parser.add_argument(
        "--num-machines", type=int, default=1, metavar="N", help="machines; default: 1"
    )
    parser.add_argument(
        "--machine-rank", type=int, default=0, metavar="N", help="which of them this is, from 0"
    )
    parser.add_argument(
        "--dist-url",
        default=_ANY_PORT,
        metavar="URL",
        help="where processes of several machines meet: tcp://HOST:PORT of the first",
    )


def _train_options(parser: Parser) -> None:
    # Not the configuration beside the weights: its OUTPUT_DIR is the finished run's.
    add_config_options(parser, weights=_START, output=_FOLDER, beside=False)
    _process_options(parser)
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint of the run's folder"
    )
    parser.add_argument("--eval-only", action="store_true", help="as `divdr evaluate`")


def _check_machines(parser: Parser, args: argparse.Namespace) -> None:
    if args.num_machines > 1 and args.dist_url == _ANY_PORT:
        parser.error("--num-machines needs --dist-url tcp://HOST:PORT, the same on all machines")


def _prepare(args: argparse.Namespace, *, required: bool) -> None:
    use_config_file(args, required=required)
    args.opts = config_pairs(args)
    if args.output:
        args.opts += ["OUTPUT_DIR", args.output]


def _train(args: argparse.Namespace) -> None:
    # Detectron2 evaluates and trains its defaults where no file is named.
    _prepare(args, required=args.eval_only and bool(args.weights))
    from ..engine.launch import run

    run(args)


def _evaluate_options(parser: Parser) -> None:
    add_config_options(parser, weights="checkpoint file, or a run's folder", output=_FOLDER)
    _process_options(parser)


def _evaluate(args: argparse.Namespace) -> None:
    args.eval_only, args.resume = True, False
    _prepare(args, required=True)
    from ..engine.launch import run

    run(args)


def _check_options(parser: Parser) -> None:
    add_config_options(parser, weights=_START, output=_FOLDER)


def _check(args: argparse.Namespace) -> None:
    _prepare(args, required=True)
    from ..engine.launch import check_run

    print(check_run(args.config_file, args.opts))


TRAIN = Command(
    summary="train a model and evaluate it",
    example="--config-file divdr_cityscapes --output output/mine --num-gpus 8 SOLVER.BASE_LR 0.05",
    options=_train_options,
    run=_train,
    about="Under torchrun each process is one of the run's; leave --num-gpus out then.",
    check=_check_machines,
)
EVALUATE = Command(
    summary="evaluate a trained model on the data sets of DATASETS.TEST",
    example="--weights output/mine/model_final.pth",
    options=_evaluate_options,
    run=_evaluate,
    check=_check_machines,
)
CHECK = Command(
    summary="see that settings, data, model and weights go together, without training",
    example="--config-file divdr_cityscapes SOLVER.IMS_PER_BATCH 4",
    options=_check_options,
    run=_check,
    about="Everything that is wrong with the data is reported at once, as before a training.",
)
