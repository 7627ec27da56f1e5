import fcntl
import multiprocessing
import subprocess
import sys
import time

import pytest
from small_study import STUDY

from divdr.errors import ConfigError
from divdr.studies import execute, run_study


def runs_of(planned, *variants):
    return [run for name in variants for run in planned[name].values()]


def test_trunks_come_first_and_each_run_is_trained_once(define, stand_in, tmp_path):
    root, trained = stand_in
    _, planned = define()
    runs = runs_of(planned, "DR", "DivDR")
    assert execute(runs, root, tmp_path / "data", jobs=2) == []
    assert all(run.finished() for run in runs)
    order = trained()
    assert sorted(order) == sorted({r.key for r in runs} | {r.trunk.key for r in runs})
    for run in runs:
        assert order.index(run.trunk.key) < order.index(run.key)
    assert execute(runs, root, tmp_path / "data") == []
    assert len(trained()) == 6


def test_only_what_is_missing_is_trained(define, stand_in, tmp_path):
    root, trained = stand_in
    _, planned = define()
    runs = runs_of(planned, "DR", "DivDR")
    execute(runs, root, tmp_path / "data")
    (planned["DR"][1].folder / "inference" / "results.json").write_text('{"cut')
    execute(runs, root, tmp_path / "data")
    assert trained()[6:] == [planned["DR"][1].key]


def test_a_failure_is_reported_and_the_others_go_on(define, stand_in, tmp_path):
    root, _ = stand_in
    text = STUDY.replace("DivDR: {}", "DivDR: {MODEL.ROUTING.CLUSTERING.WEIGHT: 0.5}")
    _, planned = define(text)
    failed = execute(runs_of(planned, "DivDR", "DR"), root, tmp_path / "data")
    assert len(failed) == 2
    assert all("DivDR, seed" in t and "this training cannot work" in t for t in failed)
    assert all(run.finished() for run in planned["DR"].values())


def test_runs_whose_trunk_fails_are_reported(define, stand_in, tmp_path):
    root, trained = stand_in
    text = STUDY.replace("trunk: {MODEL.ROUTING.CLUSTERING.WEIGHT: 0.0", "trunk: {"
                         "MODEL.ROUTING.CLUSTERING.WEIGHT: 0.5")  # fmt: skip
    _, planned = define(text)
    run = planned["DR"][0]
    failed = execute([run], root, tmp_path / "data")
    assert trained() == [run.trunk.key]
    assert "its trunk failed" in failed[1]


def test_a_run_of_another_process_is_waited_for(define, stand_in, tmp_path):
    root, trained = stand_in
    _, planned = define(STUDY.replace("fork: 0.25", "fork: 0"))
    run = planned["DR"][0]
    run.folder.mkdir(parents=True)
    holder = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX)\n"
    holder += "print('held', flush=True); time.sleep(2)"
    command = [sys.executable, "-c", holder, str(run.folder / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        execute([run], root, tmp_path / "data")
        assert other.poll() is not None
    assert trained() == [run.key]


def test_a_kill_ends_the_trainings_too(stand_in, tmp_path, monkeypatch):
    root, trained = stand_in
    (root / "configs" / "studies" / "study.yaml").write_text(STUDY)
    monkeypatch.setenv("STUDY_SECONDS", "300")
    study = multiprocessing.get_context("fork").Process(
        target=run_study, args=(root, "study", tmp_path)
    )
    study.start()
    while len(trained()) < 2 and study.is_alive():
        time.sleep(0.1)
    study.terminate()
    study.join()
    assert study.exitcode == 143
    assert len(trained()) == 2
    for key in trained():
        with (tmp_path / "runs" / key / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # its training would still hold it


CONTROLS = STUDY.replace("fork: 0.25\n", "").replace(
    "  DivDR: {}", "  DivDR: {}\n  majority: {route_of: DR, MODEL.ROUTING.GATE: none}"
)
MAKE_CONTROL = """
import sys
with open(sys.argv[sys.argv.index("--config-file") + 1]) as file:
    assert "MODEL" in file.read()
with open(sys.argv[sys.argv.index("--output") + 1], "w") as file:
    file.write("a route")
"""


def test_a_route_is_made_of_the_finished_run_of_the_same_seed(define, stand_in, tmp_path):
    root, trained = stand_in
    (root / "tools" / "make_control.py").write_text(MAKE_CONTROL)
    _, planned = define(CONTROLS)
    runs = runs_of(planned, "majority")
    assert execute(runs, root, tmp_path / "data", jobs=2) == []
    order = trained()
    for seed, run in planned["majority"].items():
        source = planned["DR"][seed]
        assert order.index(source.key) < order.index(run.key)
        route = source.folder / "majority.json"
        assert str(route) == run.cfg.MODEL.ROUTING.ROUTE
        assert route.read_text() == "a route"
    assert len(order) == 4  # DivDR was not asked for
    assert planned["majority"][0].key != planned["majority"][1].key


def test_a_finished_run_of_the_same_seed_teaches(define, stand_in, tmp_path):
    root, trained = stand_in
    _, planned = define(CONTROLS.replace("route_of: DR, MODEL.ROUTING.GATE: none", "teacher: DR"))
    assert execute(runs_of(planned, "majority"), root, tmp_path / "data", jobs=2) == []
    order = trained()
    for seed, run in planned["majority"].items():
        teacher = planned["DR"][seed]
        assert order.index(teacher.key) < order.index(run.key)
        weights = run.cfg.MODEL.ROUTING.DISTILLATION.WEIGHTS
        assert weights == str(teacher.folder / "model_final.pth")
    assert planned["majority"][0].key != planned["DivDR"][0].key  # which has no teacher
    _, others = define(CONTROLS.replace(", MODEL.ROUTING.GATE: none", ""))
    assert planned["majority"][0].key != others["majority"][0].key  # which takes the route of DR


def test_a_route_that_cannot_be_made_fails_that_run_alone(define, stand_in, tmp_path):
    root, _ = stand_in
    (root / "tools" / "make_control.py").write_text("import sys; sys.exit('no such route')")
    _, planned = define(CONTROLS)
    failed = execute(runs_of(planned, "majority", "DivDR"), root, tmp_path / "data")
    assert len(failed) == 2
    assert all("the route of DR, seed" in t and "no such route" in t for t in failed)
    assert all(run.finished() for run in planned["DivDR"].values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CONTROLS.replace("route_of: DR,", "route_of: D,"), "'D', which does not stand before"),
        (CONTROLS.replace("seeds:", "fork: 0.5\nseeds:"), "with a fork"),
        (CONTROLS.replace("route_of: DR,", "teacher: D,"), "the teaching of 'D'"),
    ],
)
def test_routes_of_no_earlier_variant_are_refused(define, text, message):
    with pytest.raises(ConfigError, match=message):
        define(text)
