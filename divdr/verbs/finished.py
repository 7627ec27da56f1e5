"""Verbs of trained models: predict, report, export, convert, analyse."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..command_line import (
    Command,
    Parser,
    add_config_options,
    at_least,
    config_pairs,
    listed,
    use_config_file,
)
from ..errors import CheckpointError, ConfigError, DataError
from ..packaged_configs import DEFAULT_WEIGHTS, packaged_weights


def _predict_options(parser: Parser) -> None:
    parser.add_argument("images", nargs="+", help="image files, or folders of them")
    add_config_options(
        parser,
        weights="checkpoint file, a run's folder, or the name of a model that divdr brings along: "
        f"{', '.join(packaged_weights())}; default: {DEFAULT_WEIGHTS}",
        output="folder for the pictures",
        output_default="output/predictions",
        files=True,
    )
    parser.add_argument(
        "--confidence",
        type=float,
        help="least score of a detection to be drawn; default: 0.5",
    )
    parser.add_argument("--task", type=at_least(0), help="which of a model's several, from 0")


def _predict(args: argparse.Namespace) -> None:
    if not args.weights and not args.config_file:
        args.weights = DEFAULT_WEIGHTS
        print(f"no --weights: {DEFAULT_WEIGHTS}, a small model of drawn street scenes, predicts")
    use_config_file(args)
    from tqdm import tqdm

    from ..engine import Predictor, load_config
    from ..visualization.predicting import expand, predict_files
    from ..visualization.predictions import CONFIDENCE

    files = expand(args.images)
    cfg = load_config(args.config_file, config_pairs(args))
    confidence = CONFIDENCE if args.confidence is None else args.confidence
    predictor = Predictor(cfg, args.task)
    failures = predict_files(predictor, files, args.output, confidence=confidence, say=tqdm.write)
    if len(failures) < len(files):
        print(f"pictures are in {args.output}")
    if failures:
        count = f"{len(failures)} of {len(files)} images are left out: "
        raise DataError((count if len(files) > 1 else "") + "; ".join(failures))


PREDICT = Command(
    summary="run a trained model on image files; save each with its prediction and its route",
    example="--weights output/mine/model_final.pth --output output/predictions PHOTO.jpg FOLDER",
    options=_predict_options,
    run=_predict,
    about="""
For a classifier it prints the class of each image. An image that cannot be read is left out,
reported at the end, and makes the exit code 2.""",
)


def _report_options(parser: Parser) -> None:
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER", help="runs, finished or not")
    parser.add_argument(
        "--output",
        default="output/report.html",
        metavar="FILE",
        help="the page; default: output/report.html",
    )
    parser.add_argument("--title", default="Dynamic routing runs", help="its heading")
    parser.add_argument("--data-root", default="", help="folder of drawn street scenes, if any")


def _report(args: argparse.Namespace) -> None:
    runs = dict(run.partition("=")[::2] for run in args.runs)
    if not all(runs.values()):
        raise ConfigError("each run is given as NAME=FOLDER")
    from ..visualization.report import report_from_runs

    print(report_from_runs(args.output, runs, title=args.title, data_root=args.data_root))


REPORT = Command(
    summary="write the HTML report of one or more runs, finished or not",
    example="--output report.html DR=output/demo/dr DivDR=output/demo/divdr",
    options=_report_options,
    run=_report,
)

_FORMATS = ("pt2", "onnx")


def _export_options(parser: Parser) -> None:
    add_config_options(
        parser,
        weights="checkpoint of the trained model",
        output="folder for the files",
        output_default="output/experts",
    )
    parser.add_argument(
        "--threshold",
        type=at_least(0, float),
        help="share of a cluster's images that must open a gate",
    )
    parser.add_argument(
        "--dispatch-layers",
        type=at_least(1),
        help="layers whose gates tell the expert of an image",
    )
    parser.add_argument(
        "--bn-batches",
        type=at_least(0),
        help="batches of each cluster to estimate BatchNorm statistics from",
    )
    parser.add_argument(
        "--fine-tune", type=at_least(0), metavar="N", help="iterations of fine-tuning each"
    )
    parser.add_argument(
        "--format", nargs="*", choices=_FORMATS, help="files to export; default: all"
    )
    parser.add_argument(
        "--size",
        type=at_least(3),
        nargs=2,
        metavar=("H", "W"),
        help="pixels; that of the first test image",
    )
    parser.add_argument("--no-evaluation", action="store_true", help="only make the files")
    parser.add_argument(
        "--trim",
        action="store_true",
        help="instead, write the routed model without what no training image uses",
    )
    parser.add_argument(
        "--gates-at-mean",
        action="store_true",
        help="with --trim: a gate that every image opens becomes its mean; accuracy of both",
    )


def _export_check(parser: Parser, args: argparse.Namespace) -> None:
    others = (args.threshold, args.dispatch_layers, args.bn_batches, args.fine_tune, args.size)
    experts = any(each is not None for each in others) or args.no_evaluation
    if args.trim and (experts or args.format is not None):
        parser.error("--trim makes no static experts, and goes with none of their options")
    if args.gates_at_mean and not args.trim:
        parser.error("--gates-at-mean is an option of --trim; static experts have no other gates")


def _export(args: argparse.Namespace) -> None:
    use_config_file(args)
    from ..engine import load_config
    from ..engine.execution_modes import load_trained
    from ..engine.export_experts import export_experts
    from ..engine.setup import make_output_folder
    from ..engine.static_experts import ExpertSettings

    make_output_folder(args.output, "--output")
    cfg = load_config(args.config_file, config_pairs(args))
    if args.trim:
        from ..engine.trim_model import trim

        print(trim(cfg, args.output, at_mean=args.gates_at_mean))
        return
    names = ("threshold", "dispatch_layers", "bn_batches", "fine_tune")
    given = {name: getattr(args, name) for name in names}
    settings = ExpertSettings(**{name: v for name, v in given.items() if v is not None})
    summary = export_experts(
        cfg,
        load_trained(cfg),
        settings,
        args.output,
        formats=_FORMATS if args.format is None else args.format,
        size=args.size,
        evaluate=not args.no_evaluation,
    )
    print(summary)


EXPORT = Command(
    summary="make K static sub-networks of a trained DivDR model, and compare ways to run it",
    example="--weights output/demo/divdr/model_final.pth --output output/demo/experts",
    options=_export_options,
    run=_export,
    about="""
Writes expert_K.pth (a plain state_dict), expert_K.pt2 and .onnx (from pixels to maps, or to the
logits of a segmentation model), experts.json, and static_experts.pth, which
MODEL.ROUTING.STATIC_EXPERTS takes. --trim writes model_final.pth, config.yaml and route.json of one
smaller model, whose gates decide for each image as before. With --gates-at-mean those that are open
for every training image that comes to their cell are numbers there.""",
    check=_export_check,
)


def _convert_options(parser: Parser) -> None:
    parser.add_argument(
        "checkpoint", help="checkpoint file or folder of a run, or a file of the published code"
    )
    parser.add_argument("converted", nargs="?", help="file to write; or name it by --output")
    add_config_options(parser, files=True)
    parser.add_argument("--output", metavar="FILE", help="file to write")
    parser.add_argument("--slim", action="store_true", help="leave out what only training needs")
    parser.add_argument("--half", action="store_true", help="likewise; weights in half precision")
    parser.add_argument(
        "--trained-format",
        metavar="FORMAT",
        help="INPUT.FORMAT that the weights were trained with, if not the published code's",
    )
    parser.add_argument("--trained-mean", nargs=3, type=float, metavar="X", help="likewise")
    parser.add_argument("--trained-std", nargs=3, type=float, metavar="X", help="likewise")


def _convert_check(parser: Parser, args: argparse.Namespace) -> None:
    if bool(args.converted) == bool(args.output):
        parser.error("name one file to write, behind the one to read or by --output")
    args.output = args.converted or args.output
    if args.config_file:
        if args.slim or args.half:
            parser.error("--slim and --half are for checkpoints of runs, without --config-file")
        return
    given = [args.opts, args.trained_format, args.trained_mean, args.trained_std]
    same = Path(args.checkpoint).suffix == Path(args.output).suffix
    if any(given) or (same and not (args.slim or args.half)):
        parser.error(
            "say --slim, --half or another ending for a checkpoint of a run; for one of the "
            "published code the following arguments are required: --config-file"
        )


def _convert(args: argparse.Namespace) -> None:
    if args.config_file:
        _convert_published(args)
    else:
        _convert_own(args)


def _convert_own(args: argparse.Namespace) -> None:
    """A run's checkpoint in another kind of file, or without what only training needs."""
    from ..checkpoint import read_weights, weight_file, without_training, write_checkpoint

    source, target = weight_file(args.checkpoint), Path(args.output)
    if target.exists() and target.samefile(source):
        raise CheckpointError(f"checkpoint {source} would replace itself: name another file")
    content = read_weights(source)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise CheckpointError(
            f"checkpoint {source} is none of a run: it holds no 'model' (one of the published code "
            "needs --config-file)"
        )
    if args.slim or args.half:
        content = without_training(content, half=args.half)
    write_checkpoint(target, content)
    sizes = [f"{file.stat().st_size / 1e6:.2f} MB" for file in (target, source)]
    print(f"wrote {target}, {sizes[0]} ({source}: {sizes[1]})")


def _convert_published(args: argparse.Namespace) -> None:
    use_config_file(args)
    from dataclasses import replace

    from detectron2.modeling import build_model

    from ..checkpoint import (
        PUBLISHED_PIXELS,
        Pixels,
        convert_model,
        find_weights,
        read_weights,
        write_checkpoint,
    )
    from ..engine import load_config

    cfg = load_config(args.config_file, ["MODEL.DEVICE", "cpu", *args.opts])
    found = find_weights(read_weights(args.checkpoint))
    if found is None:
        raise CheckpointError(f"checkpoint {args.checkpoint} holds no weights by name")
    trained = PUBLISHED_PIXELS
    if args.trained_format:
        trained = replace(trained, format=args.trained_format)
    if args.trained_mean:
        trained = replace(trained, mean=tuple(args.trained_mean))
    if args.trained_std:
        trained = replace(trained, std=tuple(args.trained_std))
    pixels = Pixels(cfg.INPUT.FORMAT, tuple(cfg.MODEL.PIXEL_MEAN), tuple(cfg.MODEL.PIXEL_STD))
    weights = convert_model(found.weights, build_model(cfg).state_dict(), pixels, trained)
    write_checkpoint(args.output, {"model": weights})
    print(
        f"wrote {args.output}, for {pixels.format} images as this config normalises them; "
        "evaluate and train it with MODEL.ROUTING.REACH published"
    )


CONVERT = Command(
    summary="make a checkpoint small to hand on, or convert one of the published code",
    example="output/mine/model_final.pth small.safetensors --half",
    options=_convert_options,
    run=_convert,
    about="""
Without --config-file a run's checkpoint is written anew, by PyTorch or, where a file's name ends in
.safetensors, as such; its config.yaml goes along by hand.
With --config-file it converts a checkpoint of the published Dynamic Routing code:
    divdr convert published.pth --output converted.pth --config-file dr_raw_cityscapes
The result holds weights alone; use it as MODEL.WEIGHTS together with MODEL.ROUTING.REACH published.
Published weights were trained on BGR images without division by a standard deviation: the first
convolution is rewritten for the INPUT.FORMAT, PIXEL_MEAN and PIXEL_STD of the config. A backbone
alone (pretrained, say) converts too; its model's head then starts anew.""",
    check=_convert_check,
)


def _analyse_options(parser: Parser) -> None:
    add_config_options(parser, weights="checkpoint of the trained classifier or detector")
    parser.add_argument(
        "--thresholds",
        type=listed(at_least(0, float)),
        default=[],
        metavar="TAU,TAU,...",
        help="accuracy, mean branches and FLOPs at each",
    )
    parser.add_argument(
        "--line",
        type=listed(at_least(0), 2),
        metavar="BRANCH,BRANCH",
        help="loss along the line between the weights of two branches of a Hydra",
    )
    parser.add_argument("--steps", type=at_least(2), default=11, help="places on the line")
    parser.add_argument(
        "--latency",
        type=listed(at_least(1)),
        default=[],
        metavar="SIZE,SIZE,...",
        help="milliseconds per image for batches of those sizes",
    )
    parser.add_argument(
        "--batches", type=at_least(1), default=40, help="batches a size, if there are"
    )
    parser.add_argument(
        "--rounds", type=at_least(1), default=10, help="how often each batch is timed"
    )
    parser.add_argument(
        "--selection", action="store_true", help="which expert runs for which class"
    )
    parser.add_argument("--choices", default="", metavar="FILE", help="picture of experts' classes")
    parser.add_argument(
        "--delegator", default="", metavar="FILE", help="picture of what a delegator selects"
    )
    parser.add_argument(
        "--decision", type=int, default=-1, help="which, from 0; the last if not given"
    )


def _analyse_check(parser: Parser, args: argparse.Namespace) -> None:
    asked = (args.thresholds, args.line, args.latency, args.selection, args.choices, args.delegator)
    if not any(asked):
        parser.error(
            "say what to look at: --thresholds, --line, --latency, --selection, --choices or "
            "--delegator"
        )


def _analyse(args: argparse.Namespace) -> None:
    use_config_file(args)
    from ..engine import load_config
    from ..engine.classifier_analysis import (
        curve_table,
        latency_table,
        line_table,
        selection_table,
    )

    cfg = load_config(args.config_file, config_pairs(args))
    if args.thresholds:
        print(curve_table(cfg, args.thresholds))
    if args.line:
        first, second = args.line
        print(line_table(cfg, first, second, args.steps))
    if args.selection:
        print(selection_table(cfg))
    if args.latency:
        print(latency_table(cfg, args.latency, args.batches, args.rounds))
    if args.choices:
        from ..visualization import expert_choices, expert_choices_figure

        choices = expert_choices(cfg, args.decision)
        expert_choices_figure(choices).savefig(args.choices, dpi=100)
        print(choices.table())
    if args.delegator:
        from ..visualization import expert_selection

        selection = expert_selection(cfg)
        selection.figure().savefig(args.delegator, dpi=100)
        print(selection.table())


ANALYSE = Command(
    summary="look at a trained mixture: thresholds, latency, which expert runs for what",
    example="--weights output/digits/dynk/model_final.pth --thresholds 0,0.02,0.08",
    options=_analyse_options,
    run=_analyse,
    about="""
--thresholds prints accuracy, mean branches and FLOPs on the test set at every τ (the gater's, or
that of early termination), --line the loss along the line between two branches' weights of a Hydra,
--latency milliseconds per image for batches of those sizes, with the chosen branches or experts by
groups and with all of them, --selection per cent of each class's images for which each expert ran.
--choices prints, and draws into a file, which experts the images of each class get, in a routing
layer or of any other system; of a detector whose box head is a mixture, the boxes of each class.
--delegator, which expert a Collaboration of Experts selects by the delegator's probability of the
true class, and by its prediction (Figures 7 and 8).""",
    check=_analyse_check,
)
