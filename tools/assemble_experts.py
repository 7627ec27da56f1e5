#!/usr/bin/env python
"""Puts experts of a single-gated mixture together that were trained one by one.

    python tools/train_net.py --config-file C ...SINGLE_GATE.EXPERT -2 OUTPUT_DIR output/gate
    python tools/train_net.py --config-file C ...SINGLE_GATE.EXPERT 0 OUTPUT_DIR output/0 \\
        MODEL.WEIGHTS output/gate/model_final.pth                      # likewise 1, 2, ...
    python tools/assemble_experts.py --config-file C output/*/expert_*.pth \\
        --opts MODEL.WEIGHTS output/gate/model_final.pth OUTPUT_DIR output/whole

(... is MODEL.CLASSIFIER.) The last writes model_final.pth and config.yaml into OUTPUT_DIR.
"""

import argparse

import _environment  # noqa: F401

from divdr.engine import load_config, report_errors
from divdr.engine.make_mixture import assemble_experts


@report_errors
def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("files", nargs="+", metavar="expert_K.pth")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE")
    options = parser.parse_args()
    cfg = load_config(options.config_file, options.opts)
    print("Wrote", assemble_experts(cfg, options.files))


if __name__ == "__main__":
    main()
