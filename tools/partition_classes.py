#!/usr/bin/env python
"""Divides classes among branches by a trained single network or detector (DynK-Hydra, Algorithm 2).

    python tools/partition_classes.py --config-file configs/classification/digits_single.yaml \
        --branches 5 --output partition.json --weights output/digits/single/model_final.pth

A Hydra takes the file by MODEL.CLASSIFIER.HYDRA.PARTITION file and PARTITION_FILE, a box head by
MODEL.ROI_BOX_HEAD.HYDRA.PARTITION file and PARTITION_FILE.
"""

import argparse
import sys

import _environment  # noqa: F401

from divdr.command_line import (
    Command,
    Parser,
    add_config_options,
    at_least,
    config_pairs,
    use_config_file,
)


def options(parser: Parser) -> None:
    add_config_options(parser, weights="checkpoint of the trained model")
    parser.add_argument("--branches", type=at_least(1), required=True, metavar="NB")
    parser.add_argument("--output", required=True, metavar="FILE")


def run(args: argparse.Namespace) -> None:
    use_config_file(args)
    from divdr.engine import load_config
    from divdr.engine.classifier_analysis import partition_by_model

    cfg = load_config(args.config_file, config_pairs(args))
    partition = partition_by_model(cfg, args.branches, args.output)
    print(f"{args.output}: branches of the classes {partition.tolist()}")


COMMAND = Command(
    summary="divide classes among branches by a trained single network or detector",
    example="--weights output/digits/single/model_final.pth --branches 5 --output partition.json",
    options=options,
    run=run,
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
