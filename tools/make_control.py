#!/usr/bin/env python
"""Make a static network to hold a routed one against: a route for all images, or a width.

    python tools/make_control.py majority --config-file configs/demo/dr.yaml \\
        --weights output/demo/dr/model_final.pth --output output/demo/majority.json
    python tools/make_control.py random --config-file configs/demo/dr.yaml --gflops 0.05 \\
        --size 128 256 --output output/demo/random.json
    python tools/make_control.py chains --config-file configs/demo/dr.yaml --gflops 0.05 \\
        --size 128 256 --output output/demo/chains.json
    python tools/make_control.py narrow --config-file configs/demo/dr.yaml --gflops 0.05 \\
        --size 128 256

Routes are files for MODEL.ROUTING.ROUTE, to be trained with MODEL.ROUTING.GATE "none" (gates at 1)
or with gates, which then say how far the transforms of the route are open. "narrow" prints the
values of MODEL.ROUTING.CHANNELS and STEM_CHANNELS, or MODEL.NARROW_BACKBONE.WIDTH of a config
with MODEL.BACKBONE.NAME "build_narrow_fpn_backbone". See docs/guide/controls.md.
"""

import argparse
import sys

import _environment  # noqa: F401

from divdr.command_line import above, at_least, report_errors


@report_errors
def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    majority = kinds.add_parser("majority", help="the route that most training images take")
    majority.add_argument("--weights", required=True, help="checkpoint of the routed network")
    majority.add_argument("--images", type=at_least(1), default=200, help="training images to ask")
    majority.add_argument(
        "--threshold",
        type=at_least(0, float),
        help="share of the images that must open a transform; default: at which the route costs "
        "what the images' own do on average, gates left out",
    )
    chosen = kinds.add_parser("random", help="a route of a given cost, drawn at random")
    chosen.add_argument("--seed", type=at_least(0), default=0, help="chooses the route")
    drawn = kinds.add_parser("chains", help="cells in a row at stride 4, at stride 8, and so on")
    drawn.add_argument("--chains", type=at_least(1), default=2, help="how many")
    narrow = kinds.add_parser("narrow", help="channels at which all cells cost so much")
    for part in (majority, chosen, drawn):
        part.add_argument("--output", required=True, metavar="FILE", help="gets the route, JSON")
    for part in (chosen, drawn, narrow):
        part.add_argument("--gflops", type=above(0), required=True, help="real cost, stem included")
        part.add_argument("--size", type=at_least(3), nargs=2, required=True, metavar=("H", "W"))
    for part in (chosen, narrow):
        part.add_argument(
            "--tolerance",
            type=at_least(0, float),
            default=0.01,
            help="by which share the cost may be off",
        )
    for part in (majority, chosen, drawn, narrow):
        part.add_argument("--config-file", required=True, help="config of the routed network")
        part.add_argument("--opts", nargs="*", default=[], help="KEY VALUE pairs of the config")
    args = parser.parse_args()
    from divdr.engine import load_config
    from divdr.engine.static_controls import chains_of, majority_of, random_of, width_of

    if args.kind == "majority":
        cfg = load_config(args.config_file, [*args.opts, "MODEL.WEIGHTS", args.weights])
        print(majority_of(cfg, args.output, images=args.images, threshold=args.threshold))
        return 0
    cfg = load_config(args.config_file, args.opts)
    size = (args.size[0], args.size[1])
    if args.kind == "random":
        print(random_of(cfg, args.output, args.gflops, size, args.seed, args.tolerance))
    elif args.kind == "chains":
        print(chains_of(cfg, args.output, args.gflops, size, args.chains))
    else:
        print(width_of(cfg, args.gflops, size, args.tolerance))
    return 0


if __name__ == "__main__":
    sys.exit(main())
