#!/usr/bin/env python
"""A page that runs a trained model on pictures: prediction, route and cost, and a slider for it.

pip install gradio
python tools/gradio_demo.py --weights output/demo/divdr/model_final.pth
"""

import argparse
import sys

import _environment  # noqa: F401

from divdr.command_line import Parser, add_config_options, config_pairs, report_errors
from divdr.command_line import use_config_file as find_config_file


def page(args: argparse.Namespace):
    """The page, ``gradio.Interface``; its function is (image, position of the dial) → results."""
    try:
        import gradio
    except ImportError:
        from divdr.errors import DivdrError

        raise DivdrError("this page needs the package gradio: pip install gradio") from None
    find_config_file(args)
    from divdr.engine import Predictor, load_config
    from divdr.visualization.predicting import drawn_route
    from divdr.visualization.predictions import prediction_picture

    predictor = Predictor(load_config(args.config_file, config_pairs(args)))
    routing = predictor.routing
    inputs = [gradio.Image(type="numpy", label="Picture")]
    outputs = [gradio.Image(label="Prediction")]
    if routing is not None:
        outputs += [gradio.Plot(label="Route"), gradio.Textbox(label="Cost")]
    if routing is not None and routing.dial is not None:
        inputs.append(gradio.Slider(0, 1, value=1, label="Cost, from the cheapest to the dearest"))

    def run(image, position=None):
        if position is not None:
            predictor.turn_dial(position)
        output = predictor(image)
        picture = prediction_picture(image, output, predictor.metadata, confidence=0.5)
        return picture if routing is None else (picture, *drawn_route(predictor, output, image))

    # One picture at a time, as the dial is the model's.
    return gradio.Interface(run, inputs, outputs, title="divdr", concurrency_limit=1)


@report_errors
def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    add_config_options(parser, weights="checkpoint of the trained model, or a run's folder")
    parser.add_argument("--port", type=int, help="of the page")
    args = parser.parse_args()
    page(args).launch(server_port=args.port)


if __name__ == "__main__":
    sys.exit(main())
