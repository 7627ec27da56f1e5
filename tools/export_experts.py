#!/usr/bin/env python
"""Make K static sub-networks of a trained DivDR model, and compare execution modes of it.

    python tools/export_experts.py --config-file configs/demo/divdr.yaml \\
        --weights output/demo/divdr/model_final.pth --output output/demo/experts

Writes expert_K.pth (a plain state_dict), expert_K.pt2 and .onnx (from pixels to maps, or to the
logits of a segmentation model), static_experts.pth (MODEL.ROUTING.STATIC_EXPERTS), experts.json.
"""

import argparse
import sys

import _environment  # noqa: F401

from divdr.engine import load_config, report_errors
from divdr.engine.execution_modes import load_trained
from divdr.engine.export_experts import export_experts
from divdr.engine.setup import at_least, make_output_folder
from divdr.engine.static_experts import ExpertSettings
from divdr.inference.static_network import FORMATS


@report_errors
def main() -> int:
    defaults = ExpertSettings()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="config that the model was trained by")
    parser.add_argument("--weights", required=True, help="its checkpoint")
    parser.add_argument("--output", default="output/experts", help="folder for the files")
    parser.add_argument(
        "--threshold",
        type=at_least(0, float),
        default=defaults.threshold,
        help="share of a cluster's images that must open a gate",
    )
    parser.add_argument(
        "--dispatch-layers",
        type=at_least(1),
        default=defaults.dispatch_layers,
        help="layers whose gates tell the expert of an image",
    )
    parser.add_argument(
        "--bn-batches",
        type=at_least(0),
        default=defaults.bn_batches,
        help="batches of each cluster to estimate BatchNorm statistics from",
    )
    parser.add_argument(
        "--fine-tune",
        type=at_least(0),
        default=defaults.fine_tune,
        metavar="N",
        help="iterations of fine-tuning each",
    )
    parser.add_argument(
        "--format", nargs="*", choices=FORMATS, default=list(FORMATS), help="files to export"
    )
    parser.add_argument(
        "--size",
        type=at_least(3),
        nargs=2,
        metavar=("H", "W"),
        help="pixels; that of the first test image",
    )
    parser.add_argument("--no-evaluation", action="store_true", help="only make the files")
    parser.add_argument("--opts", nargs="*", default=[], help="KEY VALUE pairs of the config")
    args = parser.parse_args()
    make_output_folder(args.output, "--output")
    cfg = load_config(args.config_file, [*args.opts, "MODEL.WEIGHTS", args.weights])
    model = load_trained(cfg)
    settings = ExpertSettings(
        threshold=args.threshold,
        dispatch_layers=args.dispatch_layers,
        bn_batches=args.bn_batches,
        fine_tune=args.fine_tune,
    )
    summary = export_experts(
        cfg,
        model,
        settings,
        args.output,
        formats=args.format,
        size=args.size,
        evaluate=not args.no_evaluation,
    )
    print(summary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
