import fcntl
import multiprocessing
import subprocess
import sys
import time

from small_study import STUDY

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
