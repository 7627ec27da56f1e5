#!/usr/bin/env python
"""Convert a checkpoint of the published Dynamic Routing code to one for a config of divdr.

    python tools/convert_checkpoint.py published.pth converted.pth \\
        --config-file configs/dr_raw_cityscapes.yaml

The result holds weights alone; use it as MODEL.WEIGHTS together with MODEL.ROUTING.REACH published.
"""

import argparse
import sys

from detectron2.modeling import build_model

from divdr.checkpoint import convert_model, read_weights, write_atomically
from divdr.engine import load_config, report_errors


@report_errors
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("published", help="checkpoint file of the published code")
    parser.add_argument("converted", help="file to write")
    parser.add_argument("--config-file", required=True, help="config of the model to convert to")
    parser.add_argument("--opts", nargs="*", default=[], help="KEY VALUE pairs of the config")
    args = parser.parse_args()
    cfg = load_config(args.config_file, ["MODEL.DEVICE", "cpu", *args.opts])
    loaded = read_weights(args.published)
    weights = loaded.get("model", loaded)
    write_atomically(
        args.converted, {"model": convert_model(weights, build_model(cfg).state_dict())}
    )
    print(f"wrote {args.converted}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
