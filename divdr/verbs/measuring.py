"""The verb that times plans, fixed routes and training beside the published execution."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..command_line import Command, Parser, at_least, available_device, device

_SMALLEST = 3  # pixels; the stem's first convolution needs them
_DEFAULT_CASES = ((1, 512, 1024), (8, 256, 512))
_NETWORK = ("layers", "scales", "channels", "stem_channels", "gate", "reach", "seed")


def _options(parser: Parser) -> None:
    from ..settings import RoutingSettings

    parser.add_argument("--train", action="store_true", help="time steps of training")
    parser.add_argument(
        "--weights",
        nargs="+",
        metavar="MODEL",
        help="instead, time finished models on their own test images: checkpoints, folders of "
        "runs, or names of models that divdr brings along",
    )
    parser.add_argument("--layers", type=at_least(1), default=16)
    parser.add_argument("--scales", type=at_least(1), default=4)
    parser.add_argument("--channels", type=at_least(2), default=64)
    parser.add_argument("--stem-channels", type=at_least(1), default=64)
    parser.add_argument("--gate", default="small", choices=RoutingSettings.choices("gate"))
    parser.add_argument(
        "--reach",
        default="published",
        choices=["published", "open"],
        help="open: networks save the cells behind closed transforms, the published run does not",
    )
    parser.add_argument(
        "--case",
        type=at_least(1),
        nargs=3,
        action="append",
        metavar=("BATCH", "HEIGHT", "WIDTH"),
        help="repeat for several; default 1 512 1024 and 8 256 512, with --train 4 256 512",
    )
    parser.add_argument("--closed", type=float, nargs="+", default=[0.0, 0.3, 0.6, 0.8])
    parser.add_argument("--rounds", type=at_least(1), default=5)
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument("--against", metavar="MODULE:FUNCTION", help="FUNCTION(x[, network])")
    parser.add_argument(
        "--memory",
        type=at_least(_SMALLEST),
        nargs="*",
        metavar="PIXELS",
        help="peak memory of one image of HEIGHT WIDTH, default 1024 2048, all gates open",
    )
    parser.add_argument("--no-times", action="store_true", help="with --memory: that alone")
    parser.add_argument("--device", type=device, help="cuda or cpu; default: cuda if there is one")
    parser.add_argument(
        "--targets", action="store_true", help="print also the speed-ups that the code aims at"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--picture", type=Path, metavar="FILE.png")


def _check(parser: Parser, args: argparse.Namespace) -> None:
    others = (args.train, args.case, args.against, args.picture, args.targets, args.no_times)
    if args.weights and (any(others) or args.memory is not None):
        parser.error("--weights goes with --rounds, --json and --device alone")
    if args.train and (args.memory is not None or args.picture is not None):
        parser.error("--train goes with neither --memory nor --picture")
    if args.memory is not None and len(args.memory) not in (0, 2):
        parser.error("--memory takes no number or two: height and width")
    if not all(0 <= share < 1 for share in args.closed):
        parser.error("--closed takes shares of at least 0 and below 1")
    if any(min(size) < _SMALLEST for _, *size in args.case or ()):
        parser.error(f"--case: images have at least {_SMALLEST}×{_SMALLEST} pixels")


def _run(args: argparse.Namespace) -> None:
    import torch

    from .. import benchmark
    from ..engine.setup import keep_freed_memory, make_output_folder
    from ..visualization.tradeoff import draw_benchmark

    args.device = args.device or available_device()
    if args.weights:
        _time_models(args)
        return
    for option, path in (("--json", args.json), ("--picture", args.picture)):
        if path is not None:  # now, and not after minutes
            make_output_folder(str(path.parent), f"the folder of {option},")
    against = None if args.against is None else benchmark.Against(args.against)
    machine = benchmark.describe_machine(args.device)
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    types = (torch.float32, torch.bfloat16)
    peaks = {str(t).removeprefix("torch."): benchmark.gemm_peak(args.device, t) for t in types}
    print(", ".join(f"GEMM peak {name} {p / 1e9:.0f} GFLOPs/s" for name, p in peaks.items()), "\n")
    network: dict[str, Any] = {name: getattr(args, name) for name in _NETWORK}
    if args.train:
        keep_freed_memory()
        trained = []
        for batch, height, width in args.case or ((4, 256, 512),):
            for closed in args.closed:
                case = benchmark.Case(batch, (height, width), closed, **network)
                trained.append(
                    benchmark.measure_training(
                        case, rounds=args.rounds, device=args.device, against=against
                    )
                )
                print(benchmark.training_table(trained[-1], peaks), flush=True)
        print(benchmark.training_fits(trained), end="")
        _write_json(args, machine, {"training": benchmark.training_numbers(trained, peaks)})
        return
    results = []
    for batch, height, width in [] if args.no_times else args.case or _DEFAULT_CASES:
        for closed in args.closed:
            case = benchmark.Case(batch, (height, width), closed, **network)
            results.append(
                benchmark.measure(case, rounds=args.rounds, device=args.device, against=against)
            )
            print(benchmark.case_table(results[-1], peaks), flush=True)
    memories = []
    if args.memory is not None:
        height, width = args.memory or (1024, 2048)
        case = benchmark.Case(1, (height, width), 0.0, **network)
        memories = benchmark.measure_memory(case, args.device)
        print(f"Peak memory of one image, {case.size[0]}×{case.size[1]}\n")
        print(benchmark.memory_table(memories))
    tables = [benchmark.fit_table(results)]
    if args.targets:
        tables.append(benchmark.target_table(results))
    for table in tables:
        if table:
            print(table)
    _write_json(args, machine, benchmark.as_numbers(results, memories, peaks))
    if args.picture is not None and results:
        title = f"{machine['cpu'] if args.device == 'cpu' else machine['device']}, "
        title += f"threads: {machine['threads']}, torch {machine['torch']}"
        draw_benchmark(args.picture, benchmark.lines(results), title)


def _time_models(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    from ..benchmark import describe_machine
    from ..engine.compare import time_models, times_table

    machine = describe_machine(args.device)
    print(", ".join(f"{name} {value}" for name, value in machine.items()), "\n")
    rows = time_models(args.weights, rounds=args.rounds, device=args.device)
    print(times_table(rows))
    _write_json(args, machine, {"models": [asdict(row) for row in rows]})


def _write_json(
    args: argparse.Namespace, machine: dict[str, object], numbers: dict[str, object]
) -> None:
    if args.json is None:
        return
    settings = {**vars(args), "json": str(args.json), "picture": str(args.picture)}
    text = json.dumps({"machine": machine, "settings": settings, **numbers}, indent=1)
    args.json.write_text(text + "\n", encoding="utf-8")


BENCHMARK = Command(
    summary="time plans, fixed routes and bfloat16 beside the published execution",
    example="--json output/benchmark.json --picture output/benchmark.png",
    options=_options,
    run=_run,
    about="""
With --train steps of training are timed in place of evaluation. Weights are random and gates
are closed by their biases. All execution modes take turns in one process; tables show medians.
--memory measures peaks in processes of their own. --weights times finished models in place of all
that, one image of their test sets at a time.""",
    check=_check,
)
