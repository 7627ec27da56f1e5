"""Options that cannot be: one sentence of argparse, which names the option, and exit code 2."""

import argparse
import runpy
import sys

import pytest
import torch

from divdr.command_line import above, at_least, device, listed


@pytest.mark.parametrize(
    ("kind", "text", "wanted"),
    [
        (at_least(1), "1", 1),
        (at_least(0, float), "0.5", 0.5),
        (above(0), "0.5", 0.5),
        (listed(at_least(1)), "1,64", [1, 64]),
        (listed(at_least(0, float)), "0", [0.0]),
        (listed(at_least(0), 2), "0,3", [0, 3]),
        (device, "cpu", "cpu"),
    ],
)
def test_values_are_read(kind, text, wanted):
    assert kind(text) == wanted


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (at_least(1), "0", "must be at least 1, not 0"),
        (at_least(1), "one", "'one' is not a number"),
        (at_least(1), "1.5", "'1.5' is not a number"),
        (at_least(0, float), "nan", "must be at least 0, not nan"),
        (above(0), "0", "must be above 0, not 0"),
        (listed(at_least(1)), "1,,2", "'' is not a number"),
        (listed(at_least(0), 2), "1", "2 numbers are wanted, not '1'"),
        (device, "banana", "'banana' is unknown"),
        (device, "cuda", "cuda needs a GPU, and there is none here"),
    ],
)
def test_others_are_refused(kind, text, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        kind(text)


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        ("benchmark", "--case 0 32 32", "argument --case: must be at least 1, not 0"),
        ("benchmark", "--case 1 -3 32", "argument --case: must be at least 1, not -3"),
        ("benchmark", "--case 1 2 32", "--case: images have at least 3×3 pixels"),
        ("benchmark", "--memory 0 32", "argument --memory: must be at least 3, not 0"),
        ("benchmark", "--rounds 0", "argument --rounds: must be at least 1, not 0"),
        ("benchmark", "--layers 0", "argument --layers: must be at least 1, not 0"),
        ("benchmark", "--closed 1", "--closed takes shares of at least 0 and below 1"),
        ("benchmark", "--json /proc/no/x.json", "error: the folder of --json, /proc/no cannot be"),
        ("benchmark_kmeans", "--rows 2", "--rows 2: fewer than the 4 experts"),
        ("rehearsal", "--iterations 7", "--iterations must be a multiple of 6, not 7"),
        ("analyse_classifier", "--config-file x --line 1", "argument --line: 2 numbers"),
        ("make_control", "narrow --gflops 0", "argument --gflops: must be above 0, not 0"),
        ("compare_detectors", "run --rounds 0", "argument --rounds: must be at least 1, not 0"),
    ],
)
def test_tools_name_the_option(repository, script, words, message, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(repository / "tools"))
    path = str(repository / "tools" / f"{script}.py")
    monkeypatch.setattr(sys, "argv", [path, *words.split()])
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_path(path, run_name="__main__")
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
