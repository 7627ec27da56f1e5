"""The benchmark tool, in small."""

import json

import forked

from divdr.verbs import BENCHMARK


def test_benchmark_writes_tables_numbers_and_a_picture(repository, tmp_path):
    command = ["tools/benchmark.py", "--device", "cpu"]
    command += ["--layers", "3", "--scales", "2", "--channels", "4", "--rounds", "1"]
    command += ["--case", "1", "32", "32", "--case", "2", "32", "32", "--closed", "0", "0.8"]
    command += [
        "--json",
        str(tmp_path / "b.json"),
        "--picture",
        str(tmp_path / "b.png"),
        "--targets",
    ]
    done = forked.run(command, repository)
    assert done.returncode == 0, done.stderr
    words = "batch 2, routes differ, 80% closed, against its faster mode"
    assert words in done.stdout
    numbers = json.loads((tmp_path / "b.json").read_text())
    assert {"cpu", "cores", "threads", "torch", "device"} <= set(numbers["machine"])
    assert numbers["settings"]["channels"] == 4
    assert [len(case["modes"]) for case in numbers["cases"]] == [7, 7, 8, 8]
    assert (tmp_path / "b.png").stat().st_size > 0


def test_targets_are_printed_only_when_asked_for():
    for more, wanted in (([], False), (["--targets"], True)):
        assert BENCHMARK.parser().parse_args(more).targets is wanted


def test_benchmark_times_steps_of_training(repository, tmp_path):
    command = ["tools/benchmark.py", "--device", "cpu", "--train"]
    command += ["--layers", "3", "--scales", "2", "--channels", "4", "--rounds", "1"]
    command += ["--case", "2", "32", "32", "--closed", "0", "--json", str(tmp_path / "b.json")]
    done = forked.run(command, repository)
    assert done.returncode == 0, done.stderr
    assert "training, batch 2, 32×32, 0% of the gates closed" in done.stdout
    (case,) = json.loads((tmp_path / "b.json").read_text())["training"]
    assert case["batch"] == 2
    assert [way["way"] for way in case["ways"]][:2] == ["published", "dense"]
    assert all(way["seconds"]["median"] > 0 for way in case["ways"])
