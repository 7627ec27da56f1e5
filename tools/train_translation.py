#!/usr/bin/env python
"""Train a translation model with one decoder or several, score it, translate with it.

    python tools/train_translation.py train --data datasets/debian_en_de --model coe \\
        --output output/translation/coe --width 64 --vocabulary 2000
    python tools/train_translation.py evaluate --data datasets/debian_en_de \\
        --output output/translation/coe
    python tools/train_translation.py translate --output output/translation/coe \\
        --text "a text editor"

Data are plain text files of a folder, a sentence a line: train.en and train.de, and for evaluation
test.en and test.de. A run that was interrupted goes on where it was by the same command.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import _environment  # noqa: F401

from divdr.command_line import at_least, device, report_errors
from divdr.errors import ConfigError
from divdr.settings import Settings, entries
from divdr.settings.translation import BeamSearchSettings, TranslationSettings

if TYPE_CHECKING:  # functions import it, so that --help does not wait for torch
    from divdr.translation import Evaluation, ParallelText, Translator

MODELS = ("base", "big", "coe")  # divdr.translation.MODELS


def add_settings(parser: argparse.ArgumentParser, group: type[Settings]) -> None:
    """An option for each setting of a group."""
    for entry in entries(group):
        name = f"--{entry.attribute.replace('_', '-')}"
        meaning = f"{entry.meaning} Default: {entry.default}".replace("%", "%%")
        if entry.kind is bool:
            parser.add_argument(name, action=argparse.BooleanOptionalAction, help=meaning)
        elif entry.kind is tuple:
            parser.add_argument(name, nargs=len(entry.default), type=entry.item, help=meaning)
        else:
            parser.add_argument(name, type=entry.kind, help=meaning)


def given(args: argparse.Namespace, group: type[Settings]) -> dict:
    """The settings of a group that the command line names, under their keys."""
    values = {entry.name: getattr(args, entry.attribute) for entry in entries(group)}
    return {name: value for name, value in values.items() if value is not None}


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train, or go on")
    train.add_argument("--model", choices=MODELS, default="coe", help="big: twice as wide as base")
    train.add_argument(
        "--stop", type=at_least(1), metavar="N", help="end after N of --steps; go on later"
    )
    for group in entries(TranslationSettings)[:3]:
        add_settings(train.add_argument_group(group.kind.__doc__.splitlines()[0]), group.kind)
    score = commands.add_parser("evaluate", help="BLEU of a trained model")
    score.add_argument("--split", default="test", help="valid, say; default: test")
    score.add_argument(
        "--longest", type=at_least(0), default=0, metavar="N", help="leave out pairs of more tokens"
    )
    score.add_argument(
        "--decoders", action="store_true", help="each decoder for all sentences, too"
    )
    for command in (train, score):
        command.add_argument("--data", required=True, metavar="DIR", help="folder of text files")
        command.add_argument("--source", default="en", help="ending of the source's files")
        command.add_argument("--target", default="de", help="ending of the translations'")
    translate = commands.add_parser("translate", help="translate a line, a file, or what is typed")
    translate.add_argument("--text", help="a sentence")
    translate.add_argument("--file", metavar="FILE", help="a sentence a line")
    for command in (score, translate):
        add_settings(command.add_argument_group("search"), BeamSearchSettings)
        command.add_argument(
            "--checkpoints",
            type=at_least(1),
            metavar="N",
            help="how many to average; default: as trained",
        )
    for command in (train, score, translate):
        command.add_argument("--output", required=True, metavar="DIR", help="folder of the run")
        command.add_argument("--device", type=device, default="cpu", help="cpu or cuda")
    return parser.parse_args()


def train(args: argparse.Namespace) -> None:
    from divdr.translation import ParallelText, TranslationRun, model_settings

    groups = {entry.name: given(args, entry.kind) for entry in entries(TranslationSettings)[:3]}
    settings = model_settings(args.model, TranslationSettings.of(groups))
    text = ParallelText.read(args.data, "train", (args.source, args.target))
    run = TranslationRun(args.output, text, settings, args.device)
    print(
        f"{len(run.pairs)} pairs; numbers: {run.model.loaded_parameters()} for a sentence, "
        f"{run.model.total_parameters()} in all; {run.step} of {settings.training.steps} steps done"
    )
    run.train(args.stop)


def translator(args: argparse.Namespace) -> Translator:
    from divdr.translation import Translator, load_trained

    trained = load_trained(args.output, args.checkpoints)
    search = BeamSearchSettings.of(given(args, BeamSearchSettings))
    return Translator(trained.model.to(args.device), trained.vocabulary, search)


def score(args: argparse.Namespace) -> None:
    from divdr.translation import ParallelText, encode_pairs, evaluate, selection_quality

    trained = translator(args)
    text = ParallelText.read(args.data, args.split, (args.source, args.target))
    if args.longest:
        text = shorter(text, trained, args.longest)
    found = evaluate(trained, text)
    pairs = encode_pairs(text, trained.vocabulary, trained.model.settings.max_tokens)
    results = {
        "bleu": round(found.bleu.score, 2),
        "signature": found.bleu.signature,
        "sentences": len(text),
        "shares": [round(share, 3) for share in found.shares],
        "loaded_parameters": trained.model.loaded_parameters(),
        "total_parameters": trained.model.total_parameters(),
        "selection": {
            name: round(value, 4)
            for name, value in selection_quality(trained, pairs)._asdict().items()
        },
    }
    if args.decoders and len(found.shares) > 1:
        each = [evaluate(trained, text, number) for number in range(len(found.shares))]
        results["bleu_of_each_decoder"] = [round(one.bleu.score, 2) for one in each]
        results["bleu_of_chance"] = round(chance(each, text), 2)
    folder = Path(args.output)
    (folder / f"{args.split}.{args.target}").write_text(
        "".join(f"{line}\n" for line in found.translations), encoding="utf-8"
    )
    (folder / f"{args.split}.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(json.dumps(results))


def shorter(text: ParallelText, trained: Translator, longest: int) -> ParallelText:
    """The pairs of which neither side has more tokens."""
    encode = trained.vocabulary.encode
    pairs = zip(text.source, text.target, strict=True)
    kept = [pair for pair in pairs if max(len(encode(side)) for side in pair) <= longest]
    if not kept:
        raise ConfigError(f"--longest {longest} leaves no sentence")
    return replace(text, source=[a for a, _ in kept], target=[b for _, b in kept])


def chance(each: list[Evaluation], text: ParallelText) -> float:
    """BLEU where the decoders take turns."""
    from divdr.translation import corpus_bleu

    turns = [each[n % len(each)].translations[n] for n in range(len(text))]
    return corpus_bleu(turns, text.target).score


def translate(args: argparse.Namespace) -> None:
    from divdr.translation import read_lines

    trained = translator(args)
    if args.text is not None:
        lines, what = [args.text], "--text"
    elif args.file:
        lines, what = read_lines(args.file), args.file
    else:
        lines, what = [line.rstrip("\n") for line in sys.stdin], "the input"
    for found in trained.translate(lines, what=what):
        print(found.text)


@report_errors
def main() -> int:
    args = read_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    {"train": train, "evaluate": score, "translate": translate}[args.command](args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
