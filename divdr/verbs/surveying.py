"""Verbs of what divdr brings along: its configurations, and studies of several trainings."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from ..command_line import Command, Parser, at_least
from ..packaged_configs import configs_folder, copy_config, description, packaged_configs


def _configs_options(parser: Parser) -> None:
    parser.add_argument(
        "patterns",
        nargs="*",
        metavar="PATTERN",
        help="list those of such names, 'divdr_*' or classification; all if left out",
    )
    parser.add_argument(
        "--copy", metavar="NAME", help="copy this one, with the files that it is based on"
    )
    parser.add_argument(
        "--output", metavar="DIR", help="folder for the copies; default: the current one"
    )


def _configs_check(parser: Parser, args: argparse.Namespace) -> None:
    if args.copy and args.patterns:
        parser.error("--copy NAME goes with --output, and with nothing to list")
    if args.output and not args.copy:
        parser.error("--output is for --copy NAME")


def _configs(args: argparse.Namespace) -> int:
    if args.copy:
        for path in copy_config(args.copy, args.output or "."):
            print(path)
        return 0
    found: dict[str, Path] = {}
    for pattern in args.patterns or ["*"]:
        found |= packaged_configs(pattern)
        found |= packaged_configs(f"{pattern.rstrip('/')}/*")
    width = max(map(len, found), default=0)
    room = max(40, shutil.get_terminal_size((120, 1)).columns - width - 2)
    for name, path in found.items():
        text = description(path)
        print(f"{name:{width}}  {text if len(text) <= room else text[: room - 1].rstrip() + '…'}")
    return 0 if found else 1


CONFIGS = Command(
    summary="list the configurations that divdr brings along, and copy one to change it",
    example="--copy divdr_cityscapes --output mine",
    options=_configs_options,
    run=_configs,
    about="""
Their names are what --config-file takes. Those of a folder "studies" are for `divdr study`, those
of "lazy" are LazyConfigs for Detectron2's own tools; the others are yaml files.""",
    check=_configs_check,
)


def _study_options(parser: Parser) -> None:
    parser.add_argument("name", nargs="?", help="of configs/studies/NAME.yaml, or a file")
    parser.add_argument("--list", action="store_true", help="tell the studies and what they need")
    parser.add_argument(
        "--jobs", type=at_least(1), default=2, help="trainings at once, a thread each"
    )
    parser.add_argument("--seeds", type=at_least(0), nargs="+", help="in place of the study's")
    parser.add_argument("--only", action="append", metavar="VARIANT", help="train these alone")
    parser.add_argument(
        "--iterations", type=at_least(1), help="of each training; goes to another folder"
    )
    parser.add_argument(
        "--output",
        default="output/studies",
        metavar="DIR",
        help="folder of all studies; default: output/studies",
    )


def _study(args: argparse.Namespace) -> int:
    here = Path.cwd()
    root = here if (here / "configs" / "studies").is_dir() else configs_folder().parent
    from ..studies import list_all, run_study

    if args.list or not args.name:
        list_all(root)
        return 0
    return run_study(
        root,
        args.name,
        Path(args.output).resolve(),
        jobs=args.jobs,
        seeds=args.seeds or (),
        only=args.only or (),
        iterations=args.iterations,
    )


STUDY = Command(
    summary="run a study: trainings over seeds, tables, pictures",
    example="miniature --jobs 2",
    options=_study_options,
    run=_study,
    about="""
Finished runs are skipped when it is run again; an interrupted one goes on. Studies that draw their
data by a script of datasets/ need the repository, whose folder they run in.""",
)
