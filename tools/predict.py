#!/usr/bin/env python
"""Run a trained model on image files; save each with its prediction, and the route it took.

    python tools/predict.py --config-file output/demo/divdr/config.yaml \\
        --weights output/demo/divdr --output output/predictions PHOTO.jpg FOLDER ...

For a classifier it prints the class of each image. An image that cannot be read is left out,
reported at the end, and makes the exit code 2.
"""

import argparse
import sys

import _environment  # noqa: F401
from tqdm import tqdm

from divdr.engine import Predictor, load_config, report_errors
from divdr.engine.setup import at_least
from divdr.errors import DataError
from divdr.visualization.predicting import expand, predict_files
from divdr.visualization.predictions import CONFIDENCE


@report_errors
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="+", help="image files, or folders of them")
    parser.add_argument("--config-file", required=True, help="config that the model was trained by")
    parser.add_argument("--weights", required=True, help="checkpoint file, or a run's folder")
    parser.add_argument("--output", default="output/predictions", help="folder for the pictures")
    parser.add_argument(
        "--confidence",
        type=float,
        default=CONFIDENCE,
        help="least score of a detection to be drawn",
    )
    parser.add_argument("--task", type=at_least(0), help="which of a model's several, from 0")
    parser.add_argument("--opts", nargs="*", default=[], help="KEY VALUE pairs of the config")
    args = parser.parse_args()
    files = expand(args.images)
    cfg = load_config(args.config_file, [*args.opts, "MODEL.WEIGHTS", args.weights])
    failures = predict_files(
        Predictor(cfg, args.task), files, args.output, confidence=args.confidence, say=tqdm.write
    )
    if len(failures) < len(files):
        print(f"pictures are in {args.output}")
    if failures:
        count = f"{len(failures)} of {len(files)} images are left out: "
        raise DataError((count if len(files) > 1 else "") + "; ".join(failures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
