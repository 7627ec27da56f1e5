#!/usr/bin/env python
"""Puts experts of a single-gated mixture together that were trained one by one.

    python tools/train_net.py --config-file C ...SINGLE_GATE.EXPERT -2 OUTPUT_DIR output/gate
    python tools/train_net.py --config-file C ...SINGLE_GATE.EXPERT 0 OUTPUT_DIR output/0 \
        MODEL.WEIGHTS output/gate/model_final.pth                      # likewise 1, 2, ...
    python tools/assemble_experts.py --config-file C output/*/expert_*.pth \
        --weights output/gate/model_final.pth --output output/whole

(... is MODEL.CLASSIFIER.) The last writes model_final.pth and config.yaml into its output folder.
"""

import argparse
import sys

import _environment  # noqa: F401

from divdr.command_line import (
    Command,
    Parser,
    add_config_options,
    config_pairs,
    use_config_file,
)


def options(parser: Parser) -> None:
    parser.add_argument("files", nargs="+", metavar="expert_K.pth")
    add_config_options(
        parser, weights="checkpoint of the gate", output="folder, OUTPUT_DIR", files=True
    )


def run(args: argparse.Namespace) -> None:
    use_config_file(args)
    from divdr.engine import load_config
    from divdr.engine.make_mixture import assemble_experts

    own = ["OUTPUT_DIR", args.output] if args.output else []
    cfg = load_config(args.config_file, [*config_pairs(args), *own])
    print("Wrote", assemble_experts(cfg, args.files))


COMMAND = Command(
    summary="put experts of a single-gated mixture together that were trained one by one",
    example="--config-file C output/*/expert_*.pth --weights output/gate --output output/whole",
    options=options,
    run=run,
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
