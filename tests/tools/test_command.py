"""The command ``divdr``: verbs, options and pairs, packaged configurations, and what help costs."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from detectron2.engine import default_argument_parser
from hypothesis import given
from hypothesis import strategies as st

import divdr
from divdr import verbs
from divdr.command_line import Parser, add_config_options, config_pairs, split_pairs
from divdr.engine import load_config
from divdr.engine.rehearsal import NAMES
from divdr.errors import ConfigError
from divdr.inference.static_network import FORMATS
from divdr.packaged_configs import (
    config_beside,
    copy_config,
    description,
    find_config,
    packaged_configs,
)
from divdr.studies import load_study
from divdr.translation import MODELS

ROOT = Path(__file__).resolve().parents[2]

# Each in one process: help, and mistakes, of all verbs and scripts; then what was imported.
ANSWERS = """
import contextlib, io, pathlib, runpy, sys
from divdr import verbs

LARGE = {"torch", "detectron2", "sklearn", "scipy", "matplotlib", "numpy", "torchvision", "cv2"}

def answer(run, code, *said):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            found = run()
        except SystemExit as ended:
            found = ended.code
    assert found == code, (found, err.getvalue())
    for text in said:
        assert text in out.getvalue() + err.getvalue(), (text, out.getvalue(), err.getvalue())
    assert not LARGE & set(sys.modules), (said, LARGE & set(sys.modules))

answer(lambda: verbs.main(["--help"]), 0, *(f"  {verb} " for verb in verbs.VERBS))
answer(lambda: verbs.main(["--version"]), 0, "divdr 0.")
answer(lambda: verbs.main([]), 2, "usage: divdr VERB")
answer(lambda: verbs.main(["predct"]), 2, "unknown verb 'predct'; did you mean predict?")
answer(lambda: verbs.main(["--bogus"]), 2, "unknown option '--bogus'; there are configs, check")
for verb in verbs.VERBS:
    answer(lambda: verbs.main([verb, "--help"]), 0, f"usage: divdr {verb}", f"divdr {verb} ")
for words in (
    "predict --bogus x", "train --num-gpus x", "benchmark --rounds 0", "analyse --bogus",
    "convert a b", "export --size 1 1", "report", "configs --output x", "study --jobs 0",
    "train --num-machines 2", "evaluate --bogus", "check --bogus",
    "calibrate --weights x", "calibrate --share 0 --weights x",
    "calibrate --weights x --share 0.5 --gflops 1",
):
    answer(lambda: verbs.main(words.split()), 2, "error: ")
answer(lambda: verbs.main(["configs"]), 0, "divdr_cityscapes  ")
answer(lambda: verbs.main(["export"]), 2, "name the model by --weights or --config-file")
answer(
    lambda: verbs.main(["evaluate", "--config-file", "dvdr_cityscapes"]), 2,
    "configuration file dvdr_cityscapes does not exist; did you mean divdr_cityscapes?",
)
answer(lambda: verbs.main(["export", "--weights", "none.pth"]), 2, "weights none.pth do not exist")
sys.path.insert(0, "tools")
for script in sorted(pathlib.Path("tools").glob("[a-z]*.py")):
    sys.argv = [str(script), "--help"]
    answer(lambda: runpy.run_path(str(script), run_name="__main__"), 0, f"usage: {script.name}")
print("done")
"""


def test_help_and_mistakes_are_answered_before_anything_large_is_imported(repository):
    command = [sys.executable, "-c", ANSWERS]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stderr


def test_the_module_is_the_command(repository):
    command = [sys.executable, "-m", "divdr", "configs", "dr_a_*"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "dr_a_cityscapes",
        "dr_a_coco_faster_rcnn",
        "dr_a_coco_mask_rcnn",
    ]


@pytest.mark.parametrize(
    ("words", "files", "rest", "pairs"),
    [
        ("--resume SEED 1", False, "--resume", "SEED 1"),
        ("SEED 1 --resume MODEL.DEVICE cpu", False, "--resume", "SEED 1 MODEL.DEVICE cpu"),
        ("--opts SEED 1 --output o", False, "--output o", "SEED 1"),
        ("MODEL.CLASSIFIER.SINGLE_GATE.EXPERT -2", False, "", None),
        ("SOLVER.BASE_LR -1e-3", False, "", None),
        ("SEED 1 SOLVR.MAX_ITER 2", False, "", None),  # a misspelt key is told as such later
        ("SEED", False, "", None),
        ("SEED --resume", False, "--resume", "SEED"),
        ("a.jpg SEED 1", True, "a.jpg", "SEED 1"),
        ("SEED 1 a.jpg MODEL.JPG", True, "a.jpg", "SEED 1 MODEL.JPG"),
        ("A.JPG --opts KIND 2 --task 1 b.jpg", True, "A.JPG --task 1 b.jpg", "KIND 2"),
    ],
)
def test_pairs_stand_anywhere(words, files, rest, pairs):
    found = split_pairs(words.split(), files=files)
    assert found == (rest.split(), (words if pairs is None else pairs).split())


def test_a_file_that_is_called_like_a_key_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "MODEL.png").touch()
    assert split_pairs(["MODEL.png", "SEED", "1"], files=True) == (["MODEL.png"], ["SEED", "1"])


KEYS = st.sampled_from(["SEED", "OUTPUT_DIR", "MODEL.DEVICE", "SOLVER.BASE_LR", "DATASETS.TRAIN"])
VALUES = st.sampled_from(["1", "-1", "-0.5", "cpu", "('a',)", "", "a b", "MODEL.DEVICE", "x.jpg"])
PAIRS = st.tuples(KEYS, VALUES).map(list)
OPTIONS = st.sampled_from([["--flag"], ["--number", "3"], ["--number", "7"]])


@given(st.lists(st.one_of(PAIRS, OPTIONS)), st.booleans())
def test_options_and_pairs_come_apart(parts, named):
    """Whatever their order, all pairs are found, in theirs, and the options beside them."""
    parser = Parser("tool")
    add_config_options(parser)
    parser.add_argument("--flag", action="store_true")
    parser.add_argument("--number", type=int)
    words = [
        word
        for part in parts
        for word in (["--opts"] if named and not part[0].startswith("--") else []) + part
    ]
    args = parser.parse_args(words)
    assert args.opts == [w for part in parts if not part[0].startswith("--") for w in part]
    assert args.flag == (["--flag"] in parts)
    numbers = [int(part[1]) for part in parts if part[0] == "--number"]
    assert args.number == (numbers[-1] if numbers else None)


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--config-file configs/dr_a_cityscapes.yaml --num-gpus 8 SOLVER.BASE_LR 0.1 SEED -1",
        "--config-file x --eval-only MODEL.WEIGHTS output/model_final.pth",
        "--resume --num-machines 2 --machine-rank 1 --dist-url tcp://a:1 OUTPUT_DIR x",
    ],
)
def test_training_takes_what_detectron2_takes(words):
    ours = vars(verbs.TRAIN.parser().parse_args(words.split()))
    theirs = vars(default_argument_parser().parse_args(words.split()))
    if "--dist-url" not in words:
        assert ours["dist_url"] == "auto"  # Detectron2's launch finds a port
        theirs["dist_url"] = "auto"
    assert {name: ours[name] for name in theirs} == theirs


def test_options_name_weights_and_folder(monkeypatch):
    started = []
    monkeypatch.setattr("divdr.engine.launch.run", started.append)
    words = ["--weights", "w.pth", "--output", "o", "SEED", "1", "OUTPUT_DIR", "p"]
    assert verbs.main(["train", "--config-file", "demo/dr", *words]) == 0
    pairs = ["SEED", "1", "OUTPUT_DIR", "p", "MODEL.WEIGHTS", "w.pth", "OUTPUT_DIR", "o"]
    (args,) = started
    assert args.opts == pairs
    assert Path(args.config_file) == ROOT / "configs/demo/dr.yaml"
    cfg = load_config(args.config_file, args.opts)
    assert (cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR, cfg.SEED) == ("w.pth", "o", 1)
    assert verbs.main(["evaluate", "--config-file", "demo/dr", "--weights", "w.pth"]) == 0
    assert started[1].eval_only
    assert not started[0].eval_only


def test_weights_lead_to_their_configuration(tmp_path, monkeypatch, capsys):
    started = []
    monkeypatch.setattr("divdr.engine.launch.run", started.append)
    (tmp_path / "model_final.pth").touch()
    with pytest.raises(SystemExit):
        verbs.main(["evaluate", "--weights", str(tmp_path)])
    assert f"{tmp_path} holds no config.yaml beside the weights" in capsys.readouterr().err
    (tmp_path / "config.yaml").touch()
    for weights in (tmp_path, tmp_path / "model_final.pth"):
        assert config_beside(weights) == tmp_path / "config.yaml"
        assert verbs.main(["evaluate", "--weights", str(weights)]) == 0
        assert started.pop().config_file == str(tmp_path / "config.yaml")
    # A training does not take the finished run's, and with it its folder.
    assert verbs.main(["train", "--weights", str(tmp_path)]) == 0
    assert started.pop().config_file == ""


def test_lists_that_help_does_not_wait_for(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "tools"))
    import rehearsal
    import train_translation

    from divdr.verbs.finished import _FORMATS

    assert rehearsal.NAMES == NAMES
    assert train_translation.MODELS == MODELS
    assert _FORMATS == FORMATS
    assert verbs.PREDICT.parser().parse_args(["a"]).confidence is None
    assert config_pairs(verbs.PREDICT.parser().parse_args(["a", "--weights", "w"])) == [
        "MODEL.WEIGHTS",
        "w",
    ]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("divdr_cityscapes", "divdr_cityscapes.yaml"),
        ("divdr_cityscapes.yaml", "divdr_cityscapes.yaml"),
        ("configs/divdr_cityscapes.yaml", "divdr_cityscapes.yaml"),
        ("./configs/demo/dr.yaml", "demo/dr.yaml"),
        ("digits_dynk", "classification/digits_dynk.yaml"),
        ("divdr_coco_faster_rcnn", "divdr_coco_faster_rcnn.yaml"),  # not that of small/
        ("lazy/divdr_coco_fcos", "lazy/divdr_coco_fcos.py"),
    ],
)
def test_configurations_are_found_by_name(name, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Path(find_config(name)) == ROOT / "configs" / file
    own = tmp_path / name
    own.parent.mkdir(parents=True, exist_ok=True)
    own.touch()
    assert find_config(name) == name  # one's own comes first


def test_names_that_lead_nowhere_or_to_several(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"several of that name: demo/divdr, neon_trees/divdr"):
        find_config("divdr")
    with pytest.raises(ConfigError, match=r"did you mean classification/digits_dynk\?"):
        find_config("classification/digits_dnyk")
    with pytest.raises(ConfigError, match=r"file /no/divdr_cityscapes\.yaml does not exist"):
        find_config("/no/divdr_cityscapes.yaml")


def test_models_are_listed_and_can_be_read():
    names = divdr.list_models()
    assert {"divdr_cityscapes", "demo/dr", "classification/digits_dynk"} < set(names)
    assert divdr.list_models("drop_in/*") == [
        f"drop_in/{p.stem}" for p in sorted((ROOT / "configs/drop_in").iterdir())
    ]
    assert not [n for n in names if n.rpartition("/")[2].startswith("base") or "lazy" in n]
    for name in names[::6]:
        assert load_config(name).MODEL.META_ARCHITECTURE
    studies = set(packaged_configs("studies/*")) - set(names)
    for name in studies - {n for n in studies if "/base" in n}:
        assert load_study(ROOT / f"configs/{name}.yaml").variants


def test_descriptions_are_sentences_of_their_files():
    for name, path in packaged_configs().items():
        text = description(path)
        assert len(text) > 8, name
        words = " ".join(path.read_text().replace("#", " ").split())
        assert " ".join(text.split()) in words, name
    text = "DR-A under Faster R-CNN (DivDR, Table 4): Dynamic Routing under budget A"
    assert description(ROOT / "configs/dr_a_coco_faster_rcnn.yaml").startswith(text)


def test_a_copy_means_the_same_and_nothing_is_overwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("demo/single_gate", "divdr_coco_mask_rcnn", "studies/controlled/divdr"):
        first, *others = copy_config(name, name.replace("/", "_"))
        assert others
        assert load_config(str(first)).dump() == load_config(name).dump()
    assert verbs.main(["configs", "--copy", "demo/dr", "--output", "mine"]) == 0
    printed = capsys.readouterr().out.split()
    assert "mine/demo/dr.yaml" in printed
    assert sorted(printed) == sorted(str(p) for p in Path("mine").rglob("*.yaml"))
    assert verbs.main(["configs", "--copy", "demo/dr", "--output", "mine"]) == 0  # the same files
    Path("mine/demo/base.yaml").write_text("SEED: 1\n")
    with pytest.raises(SystemExit):
        verbs.main(["configs", "--copy", "demo/dr", "--output", "mine"])
    assert "mine/demo/base.yaml exists already" in capsys.readouterr().err
    assert yaml.safe_load(Path("mine/demo/base.yaml").read_text()) == {"SEED": 1}
    lazy = copy_config("lazy/divdr_coco_fcos", "lazy")
    assert [p.name for p in lazy][:2] == ["divdr_coco_fcos.py", "common.py"]
