"""Every command that README and documents print: its script, options, settings and data exist."""

import argparse
import ast
import contextlib
import re
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image
from printed import Command, blocks, commands

from divdr import verbs
from divdr.engine import load_config
from divdr.packaged_configs import find_weights
from divdr.studies.reading import find_study

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "datasets/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
WITH_COMMANDS = [page for page in PAGES if blocks(page)]
# What a data.yaml of one's own may say.
OWN_DATA = {"name": "mine", "kind": "class_folders", "path": "pets", "split": 0.8}
# What the documents say that each data set lies in; one's own in the first.
_OWN = "/path/to/datasets"
DATA = {
    "cityscapes": {_OWN, "datasets/streetscapes", "datasets/streets128", "datasets/two_tasks"},
    "coco": {
        _OWN,
        "datasets/shapes",
        "datasets/shapes400",
        "datasets/shapes96",
        "datasets/two_tasks",
    },
    "neon": {"datasets"},
    "subsets": {"datasets/subsets"},
    "fashion": {"datasets"},
    "glyphs": {"datasets"},
    "digits": None,  # of scikit-learn: needs none
    "mine": None,  # of DATASETS.CUSTOM
}


class _Parsed(Exception):  # noqa: N818  nothing went wrong
    """What a script's parser makes of its words."""


def parsed(script: str, words: list[str], monkeypatch) -> argparse.Namespace:
    """The own parser's result, of a script or of a verb of ``divdr``, which end there."""
    original = argparse.ArgumentParser.parse_args

    def stop(self, args=None, namespace=None):
        raise _Parsed(original(self, args, namespace))

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        if script in verbs.VERBS:
            with pytest.raises(_Parsed) as found:
                verbs.main([script, *words])
            return found.value.args[0]
        patch.setattr(sys, "argv", [script, *words])
        patch.setattr(sys, "path", [str((ROOT / script).parent), *sys.path])
        patch.delitem(sys.modules, "_environment", raising=False)
        with pytest.raises(_Parsed) as found:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    return found.value.args[0]


def check_config(command: Command, args: argparse.Namespace, trained: set[str]) -> None:
    """Its keys and values are known, its data are where the page said, its weights were made."""
    pairs, weights = args.opts, getattr(args, "weights", "")
    weights = weights and str(find_weights(weights))
    if command.words[0] == "calibrate":
        trained.add(args.output)
    pairs = [str(OWN_DATA) if word == "data.yaml" else word for word in pairs]
    file = args.config_file
    if not file and weights:  # a run's folder, or a file in it
        folder = Path(weights) if Path(weights).suffix != ".pth" else Path(weights).parent
        file = str(folder / "config.yaml")
    run = Path(file).parent
    if Path(file).name == "config.yaml" and str(run) in trained:
        given = dict(zip(pairs[::2], pairs[1::2], strict=True)).get("MODEL.WEIGHTS", "")
        assert Path(weights or given).parent == run, command.place  # a run's own, not made here
        return
    output = getattr(args, "output", "")
    training = command.words[0] in ("tools/train_net.py", "train") and not args.eval_only
    if training and output:
        pairs = [*pairs, "OUTPUT_DIR", output]
    cfg = load_config(file, pairs)
    reads = Path(command.words[0]).name not in (
        "predict.py",
        "convert_checkpoint.py",
        "predict",
        "convert",
    )
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) if reads else ():
        kind = next(k for k in DATA if k in name)
        if DATA[kind] is not None:
            assert command.datasets in DATA[kind], f"{command.place}: {name} in {command.datasets}"
    weights = weights or cfg.MODEL.WEIGHTS
    if weights.startswith("output/"):
        own = load_config(file).OUTPUT_DIR
        assert str(Path(weights).parent) in {own, *trained}, command.place
    if training:
        trained.add(cfg.OUTPUT_DIR)


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: str(page.relative_to(ROOT)))
def test_printed_commands_would_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    found, trained = commands(page, tmp_path), {"output/mine"}  # made by README's lines
    assert found or page.name == "README.md"
    for command in found:
        if command.program == "pip" or command.program.startswith("cs"):
            continue  # of others
        if command.program == "make":
            for target in command.words:
                assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
            continue
        if command.words[0] == "-c" and "import sysconfig" in command.words[1]:
            continue  # of README's own pip, wherever that is
        # Others have no divdr.
        assert command.program in (".venv/bin/python", ".venv/bin/divdr"), command.place
        if command.program == ".venv/bin/divdr" and command.words == ["--help"]:
            continue
        if command.words[0] == "-c":
            imports = [s for s in ast.parse(command.words[1]).body if isinstance(s, ast.ImportFrom)]
            assert imports
            for statement in imports:
                exec(ast.unparse(statement), {})
        elif command.words[:2] == ["-m", "pytest"]:
            assert all((ROOT / path).exists() for path in command.words[2:]), command.place
        elif command.words[0] == "-m":
            path = command.words[command.words.index("--config-file") + 1]
            assert (ROOT / path).is_file(), command.place
        else:
            script, *words = command.words
            args = parsed(script, words, monkeypatch)
            if script == "convert" and not args.config_file:
                continue  # of a checkpoint alone
            if hasattr(args, "config_file"):
                check_config(command, args, trained)
            if script in ("tools/study.py", "study") and args.name:
                study = find_study(ROOT, args.name)
                assert set(args.only or ()) <= {v.name for v in study.variants}


def test_what_is_wrong_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    page = tmp_path / "page.md"
    page.write_text(
        "```sh\nfor name in dr divdr; do\n    .venv/bin/python tools/train_net.py \\\n"
        "        --config-file configs/demo/$name.yaml SOLVER.MAX_ITERS 2  # twice\ndone\n```\n"
        "- a list\n\n  ```sh\n  export DETECTRON2_DATASETS=a\n"
        "  .venv/bin/python tools/predict.py --nothing\n  ```\n"
    )
    found = commands(page, tmp_path)
    assert [c.place for c in found] == ["page.md:1", "page.md:1", "page.md:9"]
    assert [c.datasets for c in found] == [None, None, "a"]
    assert found[1].words[1:3] == ["--config-file", "configs/demo/divdr.yaml"]
    with pytest.raises(ValueError, match=r"unknown configuration key SOLVER\.MAX_ITERS"):
        check_config(found[0], parsed(*_split(found[0]), monkeypatch), set())
    with pytest.raises(SystemExit):
        parsed(*_split(found[2]), monkeypatch)
    wrong = Command("here", ".venv/bin/python", found[0].words[:-2], "datasets/shapes")
    with pytest.raises(AssertionError, match="cityscapes_fine_sem_seg_train in datasets/shapes"):
        check_config(wrong, parsed(*_split(wrong), monkeypatch), set())


def test_commands_of_the_digits_run(tmp_path, monkeypatch, capsys):
    """Those that train a Hydra, change its threshold, run it on a file and look at it, and find a
    partition."""
    pages = [ROOT / "docs/guide/classification.md", ROOT / "docs/guide/hydra.md"]
    for page in pages:
        (tmp_path / "shell" / page.stem).mkdir(parents=True)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FOLDER").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "FOLDER/digit.png")
    single = ["tools/train_net.py", "--config-file", "configs/classification/digits_single.yaml"]
    printed = [c.words for page in pages for c in commands(page, tmp_path / f"shell/{page.stem}")]
    wanted = [single, *(words for words in printed if "digits_dynk" in words[2])]
    wanted += [words for words in printed if words[0] == "tools/partition_classes.py"]
    assert len(wanted) >= 5
    for script, *words in wanted:
        with monkeypatch.context() as patch:
            short = [] if script == "tools/predict.py" else ["SOLVER.MAX_ITER", "2"]
            patch.setattr(sys, "argv", [script, *words, *short])
            patch.setattr(sys, "path", [str(ROOT / "tools"), *sys.path])
            with contextlib.suppress(SystemExit):  # what it did is looked at below
                runpy.run_path(str(ROOT / script), run_name="__main__")
    reported = capsys.readouterr().out
    assert (tmp_path / "partition.json").is_file()
    assert (tmp_path / "output/digits/dynk/inference/results.json").is_file()
    assert "mean branches" in reported
    assert "FOLDER/digit.png: class " in reported


def _split(command: Command) -> tuple[str, list[str]]:
    script, *words = command.words
    return script, words
