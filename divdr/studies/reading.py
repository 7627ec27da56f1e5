"""Reading the YAML file of a study, finding it, and making its data sets."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from ..engine.config_file import read_yaml
from ..errors import ConfigError, DataError
from .definition import Metric, Pictures, Study, Sweep, Variant

STUDIES_FOLDER = Path("configs/studies")


def list_studies(root: Path) -> list[Study]:
    """All studies of a repository, by name."""
    return [load_study(path) for path in sorted((root / STUDIES_FOLDER).glob("*.yaml"))]


def find_study(root: Path, name: str) -> Study:
    """The study of that name in a repository, or in the file of that name.

    Raises:
        ConfigError: there is none, or see ``load_study``.
    """
    if name.endswith(".yaml"):
        return load_study(name)
    path = root / STUDIES_FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(p.stem for p in sorted((root / STUDIES_FOLDER).glob("*.yaml")))
        raise ConfigError(f"there is no study {name!r}; known are {known}")
    return load_study(path)


def load_study(path: str | Path) -> Study:
    """Read a study; ``_BASE_`` names a file that it completes, as in Detectron2's configs.

    Raises:
        ConfigError: no such file, an entry is missing, unknown or of the wrong kind, or a pair or a
            picture names a variant or metric that is not there.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"there is no study {path}")
    read_yaml(str(path))  # it tells best what is wrong with the file itself
    try:
        entries = CfgNode.load_yaml_with_base(str(path))
    except (yaml.YAMLError, AttributeError, OSError, TypeError, ValueError) as error:
        raise ConfigError(f"study {path} cannot be read: {str(error).splitlines()[0]}") from None
    try:
        study = _study(path.stem, entries)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"study {path} is not as it must be: {_reason(error)}") from None
    _check(study)
    return study


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"entry {error} is missing"
    return str(error).replace("__init__() got an unexpected keyword argument", "unknown entry")


def _study(name: str, entries: dict[str, Any]) -> Study:
    entries = dict(entries)
    shared: dict[str, Any] = {
        key: entries.pop(key) for key in ("config", "overrides", "data") if key in entries
    }
    variants = entries.pop("variants")
    pictures = dict(entries.pop("pictures", {}))
    if pictures.get("sweep"):
        pictures["sweep"] = Sweep(**_tuples(pictures["sweep"]))
    pictures["need"] = [(a, b) for a, b in pictures.get("need", [])]
    return Study(
        name=name,
        variants=tuple(_variant(n, dict(own or {}), shared) for n, own in variants.items()),
        metrics=tuple(Metric(key, **about) for key, about in entries.pop("metrics").items()),
        pairs=tuple((a, b) for a, b in entries.pop("pairs", [])),
        pictures=Pictures(**_tuples(pictures)),
        **_tuples(entries),
    )


def _tuples(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in entries.items()}


def _variant(name: str, own: dict[str, Any], shared: Mapping[str, Any]) -> Variant:
    config = own.pop("config", None) or shared["config"]
    data = own.pop("data", shared.get("data", []))
    route_of, teacher = (str(own.pop(key, "")) for key in ("route_of", "teacher"))
    wrong = [key for key in own if not key[:1].isupper()]
    if wrong:
        raise ValueError(f"variant {name} has an unknown entry {wrong[0]!r}")
    # A list is written as a command's words; numbers among them are words too.
    words = tuple(str(word) for word in data)
    overrides = {**(shared.get("overrides") or {}), **own}
    return Variant(name, config, overrides, words, route_of, teacher)


def _check(study: Study) -> None:
    names = [v.file_name for v in study.variants]
    pictures = study.pictures
    used = [name for pair in (*study.pairs, *pictures.need) for name in pair]
    used += [*pictures.embedding, *pictures.montage, *study.oracle]
    drawn = [*pictures.tradeoff, *filter(None, [pictures.progress])]
    if pictures.sweep:
        used += [*pictures.sweep.variants, *filter(None, [pictures.sweep.reference])]
        drawn += pictures.sweep.metrics
    for name in used:
        study.variant(name)
    for key in drawn:
        study.metric(key)
    before: set[str] = set()
    for variant in study.variants:
        earlier = {"route": variant.route_of, "teaching": variant.teacher}
        for what, source in earlier.items():
            if source and source not in before:
                raise ConfigError(
                    f"study {study.name}: variant {variant.name} takes the {what} of {source!r}, "
                    "which does not stand before it"
                )
            if source and study.fork:
                raise ConfigError(
                    f"study {study.name}: with a fork, variants cannot have the {what} of another"
                )
        before.add(variant.name)
    if len(set(names)) < len(names) or not all(names):
        raise ConfigError(f"study {study.name}: variants must differ in letters and digits")
    if not (study.seeds and all(isinstance(s, int) and s >= 0 for s in study.seeds)):
        raise ConfigError(f"study {study.name}: seeds must be whole numbers from 0, at least one")
    if len(set(study.seeds)) < len(study.seeds):
        raise ConfigError(f"study {study.name} names a seed twice")
    if study.fork < 0:
        raise ConfigError(f"study {study.name}: fork cannot be negative: {study.fork}")
    if pictures.tradeoff and len(pictures.tradeoff) != 2:
        raise ConfigError(f"study {study.name}: tradeoff wants the keys of cost and accuracy")


def data_folder(command: tuple[str, ...], store: Path) -> Path:
    """Folder of the data set that a command makes: the command's name and a hash of its words.

    Args:
        command: ``datasets/NAME.py`` and its options, ``--output`` left out.
        store: folder of all data sets of studies.
    """
    digest = hashlib.sha256(json.dumps(list(command)).encode()).hexdigest()[:8]
    return store / f"{Path(command[0]).stem}_{digest}"


def make_data(command: tuple[str, ...], store: Path, root: Path) -> Path:
    """Run the command that makes a data set; it skips what is there.

    Args:
        command: see ``data_folder``.
        store: see ``data_folder``.
        root: the repository, in which the command runs.

    Returns:
        The folder that $DETECTRON2_DATASETS must name.

    Raises:
        DataError: the command is not there, or failed.
    """
    place = data_folder(command, store)
    if not (root / command[0]).is_file():
        raise DataError(
            f"the study draws its data by {command[0]}, which is in divdr's repository and not in "
            "the installed package: run it in the repository's folder"
        )
    words = [sys.executable, "-W", "ignore", *command, "--output", str(place)]
    if subprocess.run(words, cwd=root, check=False).returncode:
        raise DataError(f"`{' '.join(command)}` failed; its own words stand above")
    return place
