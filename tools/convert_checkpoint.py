#!/usr/bin/env python
"""Convert a checkpoint of the published Dynamic Routing code to one for a config of divdr.

    python tools/convert_checkpoint.py published.pth converted.pth \\
        --config-file configs/dr_raw_cityscapes.yaml

The result holds weights alone; use it as MODEL.WEIGHTS together with MODEL.ROUTING.REACH published.
Published weights were trained on BGR images without division by a standard deviation: the first
convolution is rewritten for the INPUT.FORMAT, PIXEL_MEAN and PIXEL_STD of the config. A backbone
alone (pretrained, say) converts too; its model's head then starts anew.
"""

import argparse
import sys

import _environment  # noqa: F401
from detectron2.modeling import build_model

from divdr.checkpoint import (
    PUBLISHED_PIXELS,
    Pixels,
    convert_model,
    find_weights,
    read_weights,
    write_atomically,
)
from divdr.engine import load_config, report_errors
from divdr.errors import CheckpointError


@report_errors
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("published", help="checkpoint file of the published code")
    parser.add_argument("converted", help="file to write")
    parser.add_argument("--config-file", required=True, help="config of the model to convert to")
    known = PUBLISHED_PIXELS
    parser.add_argument(
        "--trained-format",
        default=known.format,
        help="INPUT.FORMAT that the weights were trained with, if not the published code's",
    )
    parser.add_argument("--trained-mean", nargs=3, type=float, default=known.mean, metavar="X")
    parser.add_argument("--trained-std", nargs=3, type=float, default=known.std, metavar="X")
    parser.add_argument("--opts", nargs="*", default=[], help="KEY VALUE pairs of the config")
    args = parser.parse_args()
    cfg = load_config(args.config_file, ["MODEL.DEVICE", "cpu", *args.opts])
    found = find_weights(read_weights(args.published))
    if found is None:
        raise CheckpointError(f"checkpoint {args.published} holds no weights by name")
    trained = Pixels(args.trained_format, tuple(args.trained_mean), tuple(args.trained_std))
    pixels = Pixels(cfg.INPUT.FORMAT, tuple(cfg.MODEL.PIXEL_MEAN), tuple(cfg.MODEL.PIXEL_STD))
    weights = convert_model(found.weights, build_model(cfg).state_dict(), pixels, trained)
    write_atomically(args.converted, {"model": weights})
    print(
        f"wrote {args.converted}, for {pixels.format} images as this config normalises them; "
        "evaluate and train it with MODEL.ROUTING.REACH published"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
