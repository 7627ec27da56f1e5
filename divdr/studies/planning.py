"""From a study to runs, each of a config, a data set, a seed and a trunk, and their processes."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ..checkpoint import read_weights, write_atomically, write_text_atomically
from ..engine import load_config
from ..errors import ConfigError, DataError
from ..experts import LocalExperts
from ..routing import to_iterations
from .definition import Study, Variant

_ROUTE_FILE = "majority.json"
_WEIGHTS = "model_final.pth"


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: for people: variant and seed.
        cfg: resolved and frozen; ``OUTPUT_DIR`` is ``folder``.
        data: command that makes the data set; () for $DETECTRON2_DATASETS as it is.
        trunk: the run that it continues; None if it starts anew.
        source: the run whose images' route is its network; None without ``route_of``.
        teacher: the run whose network teaches it; None without ``teacher``.
        folder: where it is kept, named after ``key``.
        key: hash of all that decides the outcome: runs of several studies with the same are one.
    """

    name: str
    cfg: CfgNode
    data: tuple[str, ...]
    trunk: Run | None
    folder: Path
    key: str
    source: Run | None = None
    teacher: Run | None = None

    @property
    def needs(self) -> tuple[Run, ...]:
        """Runs that have to be finished before it can start."""
        return tuple(run for run in (self.trunk, self.source, self.teacher) if run is not None)

    @property
    def iterations(self) -> int:
        """Iterations that are its own."""
        last = self.cfg.SOLVER.STOP_ITER or self.cfg.SOLVER.MAX_ITER
        return last - (self.trunk.cfg.SOLVER.STOP_ITER if self.trunk else 0)

    @property
    def seed(self) -> int:
        """Seed of weights, order and augmentations."""
        return self.cfg.SEED

    @property
    def evaluates(self) -> bool:
        """Whether it ends with an evaluation; a trunk does not."""
        return not self.cfg.SOLVER.STOP_ITER

    def finished(self) -> bool:
        """Whether weights and, unless it is a trunk, whole results are there."""
        if not (self.folder / _WEIGHTS).is_file():
            return False
        return not self.evaluates or self.results() is not None

    def results(self) -> dict[str, Any] | None:
        """Results by data set; None while there are none."""
        try:
            return json.loads((self.folder / "inference" / "results.json").read_text())
        except (OSError, ValueError):  # not there, or cut short
            return None


def plan(
    study: Study, root: Path, store: Path, iterations: int | None = None
) -> dict[str, dict[int, Run]]:
    """All runs of a study by variant and seed; trunks hang on them.

    Args:
        study: the study.
        root: the repository, which config files are relative to.
        store: folder of all runs.
        iterations: of each training; None: as configured.

    Raises:
        ConfigError: a setting is unknown or wrong, or the variants of a pair do not share what
            comes before the fork.
    """
    runs: dict[str, dict[int, Run]] = {}
    for variant in study.variants:
        earlier = runs.get(variant.route_of, {}), runs.get(variant.teacher, {})
        runs[variant.name] = _runs(study, variant, root, store, iterations, *earlier)
    for pair in study.pairs:
        _check_pair(*(runs[name][study.seeds[0]] for name in pair))
    return runs


def _runs(
    study: Study,
    variant: Variant,
    root: Path,
    store: Path,
    iterations: int | None,
    sources: Mapping[int, Run],
    teachers: Mapping[int, Run],
) -> dict[int, Run]:
    overrides = dict(variant.overrides)
    if iterations:
        overrides["SOLVER.MAX_ITER"] = iterations
    cfg = _resolve(root / variant.config, overrides)
    before = _before_fork(study, cfg, root / variant.config, overrides) if study.fork else None
    runs = {}
    for seed in study.seeds:
        trunk = None
        if before is not None:
            trunk = _identified(f"trunk, seed {seed}", before, seed, variant.data, None, store)
        name = f"{variant.name}, seed {seed}"
        others = sources.get(seed), teachers.get(seed)
        runs[seed] = _identified(name, cfg, seed, variant.data, trunk, store, *others)
    return runs


def _before_fork(study: Study, cfg: CfgNode, config: Path, overrides: dict[str, Any]) -> CfgNode:
    fork = to_iterations(study.fork, cfg.SOLVER.MAX_ITER)
    if not 0 < fork < cfg.SOLVER.MAX_ITER:
        raise ConfigError(
            f"study {study.name} forks at iteration {fork} of a training of {cfg.SOLVER.MAX_ITER}"
        )
    # Nothing but training: an evaluation would re-estimate BatchNorm in the middle of it.
    quiet = {"DATASETS.TEST": (), "TEST.PRECISE_BN.ENABLED": False}
    return _resolve(config, {**overrides, **study.trunk, "SOLVER.STOP_ITER": fork, **quiet})


def _resolve(config: Path, overrides: Mapping[str, Any]) -> CfgNode:
    words = [str(word) for pair in overrides.items() for word in pair]
    return load_config(str(config), words)


def _identified(
    name: str,
    cfg: CfgNode,
    seed: int,
    data: tuple[str, ...],
    trunk: Run | None,
    store: Path,
    source: Run | None = None,
    teacher: Run | None = None,
) -> Run:
    cfg = cfg.clone()
    cfg.SEED, cfg.OUTPUT_DIR = seed, ""
    parts = [cfg.dump(), list(data), trunk.key if trunk else None]
    if source is not None:
        parts.append(source.key)
    if teacher is not None:  # which is not the same as taking its route
        parts.append(["teacher", teacher.key])
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    folder = store / key
    cfg.OUTPUT_DIR = str(folder)
    if source is not None:
        cfg.MODEL.ROUTING.ROUTE = str(source.folder / _ROUTE_FILE)
    if teacher is not None:
        cfg.MODEL.ROUTING.DISTILLATION.WEIGHTS = str(teacher.folder / _WEIGHTS)
    cfg.freeze()
    return Run(name, cfg, data, trunk, folder, key, source, teacher)


def _check_pair(a: Run, b: Run) -> None:
    if not (a.trunk and b.trunk) or a.trunk.key == b.trunk.key:
        return
    left, right = _flat(a.trunk.cfg), _flat(b.trunk.cfg)
    differing = [k for k in left if left[k] != right.get(k) and k != "OUTPUT_DIR"]
    raise ConfigError(
        f"{a.name} and {b.name} are compared but differ before the fork in "
        f"{', '.join(differing) or 'their data'}; give it one value under `trunk`"
    )


def _flat(node: CfgNode, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, CfgNode):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def start_from_trunk(run: Run) -> None:
    """Put the trunk's last checkpoint and its curves into the run's folder, unless done before.

    Weights, optimiser, schedule, activation bank and centres go along. A run with another number
    of experts, partition or scaling clusters the same bank anew; one that clusters other values
    (gates before instead of after their non-linearity) starts with an empty bank.
    """
    if run.trunk is None or (run.folder / "last_checkpoint").is_file():
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    content = read_weights(run.trunk.folder / _WEIGHTS)
    experts = content.get("routing", {}).get("experts")
    if experts is not None:
        content["routing"]["experts"] = _suited(experts, run.trunk, run)
    curves = run.trunk.folder / "metrics.json"
    if curves.is_file():
        shutil.copyfile(curves, run.folder / "metrics.json")
    name = f"model_{content['iteration']:07d}.pth"
    write_atomically(run.folder / name, content)
    write_text_atomically(run.folder / "last_checkpoint", name)


def _suited(state: dict[str, Any], trunk: Run, run: Run) -> dict[str, Any]:
    before, after = _clustering(trunk), _clustering(run)
    if all(before[key] == after[key] for key in ("NUM_EXPERTS", "GATES", "PARTITION", "SCALING")):
        return state
    experts = LocalExperts(
        after.NUM_EXPERTS,
        state["dim"],
        restarts=after.KMEANS.RESTARTS,
        backend=after.KMEANS.BACKEND,
        seed=run.seed,
        partition=after.PARTITION,
        scaling=after.SCALING,
        stability=after.STABILITY,
    )
    # A run that ended by itself and only measured has no bank to hand on.
    if before.GATES == after.GATES and state["bank"] is not None:
        experts.bank.load_state_dict(state["bank"])
        if state["centres"] is not None:
            experts.cluster(trunk.cfg.SOLVER.STOP_ITER)
    return experts.state_dict()


def _clustering(run: Run) -> CfgNode:
    return run.cfg.MODEL.ROUTING.CLUSTERING


def _make_route(source: Run, root: Path, environment: Mapping[str, str]) -> None:
    """Write the route that most training images take in a finished run; it takes a minute."""
    route = source.folder / _ROUTE_FILE
    if route.is_file():
        return
    partial = route.with_suffix(".partial")
    words = [sys.executable, "-W", "ignore", "tools/make_control.py", "majority"]
    words += ["--config-file", str(source.folder / "definition.yaml")]
    words += ["--weights", str(source.folder / _WEIGHTS), "--output", str(partial)]
    limits = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        words, cwd=root, env={**environment, **limits}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no words"])[-1]
        raise DataError(f"the route of {source.name} could not be made ({last})")
    partial.replace(route)


class Job:
    """Trains and evaluates a run with ``divdr train``, from its last checkpoint if any.

    A lock that the process inherits keeps a second one away from the folder, also one of another
    study, for as long as the first lives.

    Args:
        run: what to train; its trunk is finished.
        root: the repository.
        environment: of the process.

    Raises:
        BlockingIOError: another process trains it.
        DataError: the route of its source could not be made.
    """

    def __init__(self, run: Run, root: Path, environment: Mapping[str, str]) -> None:
        self.run = run
        self._started = time.time()
        run.folder.mkdir(parents=True, exist_ok=True)
        with (run.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            start_from_trunk(run)
            if run.source is not None:
                _make_route(run.source, root, environment)
            definition = run.folder / "definition.yaml"
            write_text_atomically(definition, run.cfg.dump())
            # An installed package has the program alone; paths of data then are the user's.
            script = (root / "tools/train_net.py").is_file()
            program = ["tools/train_net.py"] if script else ["-m", "divdr", "train"]
            command = [sys.executable, "-W", "ignore", *program, "--resume"]
            with self._console.open("a") as console:
                self.process = subprocess.Popen(
                    [*command, "--config-file", str(definition)],
                    cwd=root if script else None,
                    env={**environment, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=subprocess.STDOUT,
                    pass_fds=[lock.fileno()],
                )

    @property
    def _console(self) -> Path:
        return self.run.folder / "console.txt"

    def ended(self) -> bool:
        """Whether the process has ended."""
        return self.process.poll() is not None

    def close(self) -> bool:
        """Note what the ended run was and took, drop its passing checkpoints; whether it is whole.

        ``run.json`` says, for people, which run of which data lies in the folder, and the seconds.
        """
        folder = self.run.folder
        record = folder / "run.json"
        before = json.loads(record.read_text())["seconds"] if record.is_file() else 0.0
        note = {
            "name": self.run.name,
            "seed": self.run.seed,
            "data": list(self.run.data),
            "trunk": self.run.trunk.key if self.run.trunk else None,
            "seconds": round(before + time.time() - self._started, 1),
        }
        write_text_atomically(record, json.dumps(note, indent=2))
        if self.process.returncode or not self.run.finished():
            return False
        for checkpoint in folder.glob("model_[0-9]*.pth"):
            checkpoint.unlink()
        return True

    def last_words(self) -> str:
        """The end of what it printed."""
        text = self._console.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.strip().splitlines()[-12:])

    def stop(self) -> None:
        """End the process; a later one goes on from its last checkpoint."""
        if not self.ended():
            self.process.terminate()
            self.process.wait()
