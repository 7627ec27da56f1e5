"""tools/train_translation.py: train, evaluate, translate, and what it says of bad input."""

import json
import runpy
import subprocess
import sys

import pytest
from tiny_translation import text

from divdr.settings import Settings, entries
from divdr.settings.translation import TranslationSettings

SIZES = (
    "--vocabulary 120 --encoder-layers 1 --decoder-layers 1 --width 16 --feedforward 24 --heads 2 "
    "--max-tokens 40 --batch-tokens 90 --warmup 4 --alpha 0.2 0.3 --no-srm"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 20), ("test", 6)):
        lines = text(count)
        (folder / f"{split}.en").write_text("".join(f"{line}\n" for line in lines.source))
        (folder / f"{split}.de").write_text("".join(f"{line}\n" for line in lines.target))
    return folder


@pytest.fixture
def tool(repository, monkeypatch, capsys):
    """Runs the tool as a shell does; gives exit code, output and the last line of errors."""

    def run(words: str) -> tuple[int, str, str]:
        path = str(repository / "tools" / "train_translation.py")
        monkeypatch.setattr(sys, "argv", [path, *words.split()])
        monkeypatch.syspath_prepend(str(repository / "tools"))
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(path, run_name="__main__")
        told = capsys.readouterr()
        return ended.value.code, told.out, (told.err.strip().splitlines() or [""])[-1]

    return run


# As where nobody installed Detectron2, nor anything that it needs.
WITHOUT_DETECTRON2 = """
import runpy, sys
for name in ("detectron2", "fvcore", "iopath", "yacs", "pycocotools", "torchvision", "cv2"):
    sys.modules[name] = None
import torch
torch.set_num_threads(1)
script, sys.argv = sys.argv[1], sys.argv[1:]
sys.path.insert(0, script.rsplit("/", 1)[0])
import importlib.util as util
found = util.find_spec
util.find_spec = lambda name, *rest: None if name == "detectron2" else found(name, *rest)
runpy.run_path(script, run_name="__main__")
"""


def test_train_go_on_evaluate_and_translate(repository, data, tmp_path, tool):
    run = f"--output {tmp_path}"
    train = f"train --data {data} {run} --model coe --experts 2 --steps 6 {SIZES}"
    script = str(repository / "tools" / "train_translation.py")
    words = [sys.executable, "-c", WITHOUT_DETECTRON2, script, *train.split(), "--stop", "3"]
    done = subprocess.run(words, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "20 pairs" in done.stdout
    assert "0 of 6 steps done" in done.stdout
    code, told, _ = tool(train)
    assert (code, "3 of 6 steps done" in told) == (0, True)
    code, told, error = tool(
        f"evaluate --data {data} {run} --beam 2 --extra-tokens 3 --decoders --longest 30"
    )
    assert code == 0, error
    results = json.loads((tmp_path / "test.json").read_text())
    assert results == json.loads(told)
    assert len(results["bleu_of_each_decoder"]) == 2
    assert results["sentences"] == len((tmp_path / "test.de").read_text().splitlines()) == 6
    lines = tmp_path / "lines"
    lines.write_text("It is thirty-two.\nforty or two, said she\n")
    code, told, _ = tool(f"translate {run} --file {lines} --extra-tokens 3")
    assert (code, len(told.splitlines())) == (0, 2)
    code, again, _ = tool(f"translate {run} --text It --extra-tokens 3 --beam 1")
    assert (code, len(again.splitlines())) == (0, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train --data NONE --output OUT", "error: text file NONE/train.en does not exist"),
        ("train --data DATA --output OUT --width 15 --heads 3", "error: TRANSLATION.MODEL.WIDTH"),
        ("train --data DATA --output OUT --width 0", "error: TRANSLATION.MODEL.WIDTH must be at"),
        ("train --data DATA --output OUT", "error: VOCABULARY 37000 is too large for this text"),
        ("train --data DATA --output OUT --alpha 0.1 1.5", "error: TRANSLATION.COE.ALPHA must"),
        ("train --data DATA --output OUT --wgm all", "error: TRANSLATION.COE.WGM must be one of"),
        ("evaluate --data DATA --output NONE", "error: NONE holds no checkpoint of a translation"),
        ("translate --output NONE --text a", "error: NONE holds no checkpoint of a translation"),
        ("train --data DATA --output OUT --stop 0", "train_translation.py train: error: argument"),
        ("translate --output NONE --beam 0", "error: NONE holds no"),
    ],
)
def test_one_sentence_says_what_is_wrong(tool, data, tmp_path, words, message):
    places = {"DATA": data, "OUT": tmp_path / "out", "NONE": tmp_path / "none"}
    for name, place in places.items():
        words, message = words.replace(name, str(place)), message.replace(name, str(place))
    code, _, error = tool(words)
    assert code == 2
    assert error.startswith(message)


def test_every_setting_has_an_option_of_its_own():
    groups = [entry.kind for entry in entries(TranslationSettings)]
    names = [entry.attribute for group in groups for entry in entries(group)]
    assert len(names) == len(set(names))
    assert all(issubclass(group, Settings) for group in groups)
