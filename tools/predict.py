#!/usr/bin/env python
"""Run a trained model on image files; save each with its prediction, and the route it took.

    python tools/predict.py --config-file configs/demo/divdr.yaml \\
        --weights output/demo/divdr/model_final.pth --output output/predictions PHOTO.jpg ...
"""

import argparse
import sys
from pathlib import Path

import _environment  # noqa: F401
import numpy as np
from detectron2.data.detection_utils import read_image
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from divdr.engine import Predictor, load_config, report_errors
from divdr.errors import DataError
from divdr.visualization import route_figure
from divdr.visualization.prediction import prediction_picture


@report_errors
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--config-file", required=True, help="config that the model was trained by")
    parser.add_argument("--weights", required=True, help="checkpoint file")
    parser.add_argument("--output", default="output/predictions", help="folder for the pictures")
    parser.add_argument(
        "--confidence", type=float, default=0.5, help="least score of a detection to be drawn"
    )
    parser.add_argument("--opts", nargs="*", default=[], help="KEY VALUE pairs of the config")
    args = parser.parse_args()
    missing = [name for name in args.images if not Path(name).is_file()]
    if missing:
        raise DataError(f"image {missing[0]} does not exist")

    cfg = load_config(args.config_file, [*args.opts, "MODEL.WEIGHTS", args.weights])
    predictor = Predictor(cfg)
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    for name in tqdm(args.images, unit="image"):
        image = _read(name)
        output = predictor(image)
        stem = Path(name).stem
        picture = prediction_picture(image, output, predictor.metadata, confidence=args.confidence)
        Image.fromarray(picture).save(folder / f"{stem}_prediction.png")
        if "routing" in output:
            figure, line = _route(predictor, output)
            figure.savefig(folder / f"{stem}_route.png", dpi=120)
            tqdm.write(f"{name}: {line}")
    print(f"pictures are in {folder}")
    return 0


def _read(name: str) -> np.ndarray:
    try:
        return read_image(name, "RGB")
    except (OSError, ValueError) as error:
        raise DataError(f"file {name} cannot be read as an image ({error})") from None


def _route(predictor: Predictor, output: dict) -> tuple[Figure, str]:
    record = output["routing"].to("cpu")
    real, expected = float(record.real_cost) / 1e9, float(record.expected_cost) / 1e9
    full = record.full_cost / 1e9
    line = f"real cost {real:.3f} GFLOPs, expected {expected:.3f} of {full:.3f}"
    expert = predictor.expert(output)
    if expert is not None:
        line += f", expert {expert}"
    space = predictor.routing.backbone.space
    figure = route_figure(space, record.activations[0].numpy(), record.reached[0].numpy(), line)
    return figure, line


if __name__ == "__main__":
    sys.exit(main())
