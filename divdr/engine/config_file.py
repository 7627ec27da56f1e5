"""Configuration files and ``KEY VALUE`` pairs, merged into a configuration of known keys.

Detectron2's own merging does the same for files that are as they should be. For others an error of
its yaml parser or file system, or an assertion, names neither the file nor the key. It also refuses
the whole number 1 where a number with a decimal point is meant; here that is taken.
"""

from __future__ import annotations

import difflib
import logging
import os
import reprlib
from ast import literal_eval
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from ..data import located_entries
from ..errors import ConfigError
from ..settings.field import as_default

logger = logging.getLogger(__name__)

BASE = "_BASE_"


def merge_file(cfg: CfgNode, path: str, within: Sequence[str] = ()) -> None:
    """Set, in place, what a yaml file sets, and before it what its ``_BASE_`` files set.

    Args:
        cfg: with all known keys.
        path: the file; paths in ``_BASE_`` are relative to its folder.
        within: files whose base this one is.

    Raises:
        ConfigError: it is missing, is no yaml of keys and values, sets a key that is not known, or
            a value of another type than the default's; also of a file that it is based on.
    """
    if path in within:
        raise ConfigError(f"{path} is based on itself ({BASE} leads back to it)")
    values = read_yaml(path)
    bases = values.pop(BASE, [])
    for base in bases if isinstance(bases, (list, tuple)) else [bases]:
        if not isinstance(base, str) or not base:
            raise ConfigError(f"{path}: {BASE} names files, not {reprlib.repr(base)}")
        base = os.path.expanduser(base)
        if "://" not in base:
            base = os.path.normpath(os.path.join(os.path.dirname(path), base))
        if not PathManager.isfile(base):
            raise ConfigError(f"{path}: its {BASE} {base} does not exist")
        merge_file(cfg, base, [*within, path])
    version = values.get("VERSION", cfg.VERSION)
    if version != cfg.VERSION:
        raise ConfigError(
            f"{path} is of VERSION {reprlib.repr(version)} of Detectron2's configurations; "
            f"{cfg.VERSION} is read"
        )
    data = values.get("DATASETS")
    if isinstance(data, dict) and "CUSTOM" in data:
        # The paths in it start from this file's folder, which nobody knows later.
        data["CUSTOM"] = located_entries(data["CUSTOM"], os.path.dirname(path), f"{path}: ")
    _merge(cfg, cfg, values, "", f"{path}: ")


def merge_pairs(cfg: CfgNode, pairs: Sequence[Any]) -> None:
    """Set, in place, keys to values: ``["SOLVER.MAX_ITER", "100", ...]``.

    Args:
        cfg: with all known keys.
        pairs: keys and values in turn; a value that is text is read as Python writes it, and is
            itself where that fails.

    Raises:
        ConfigError: a key without a value, or one that is not known, or a value of another type
            than the default's.
    """
    for key, value in zip(pairs[::2], pairs[1::2], strict=False):
        node, full = cfg, str(key)
        *groups, name = full.split(".")
        for group in groups:
            node = node[group] if group in node else CfgNode()
            if not isinstance(node, CfgNode):
                raise ConfigError(_unknown_key(full, cfg))
        if full == "DATASETS.CUSTOM":
            value = located_entries(_decoded(value, []), "")
        _merge(cfg, node, {name: value}, full.removesuffix(name), "")
    if len(pairs) % 2:
        raise ConfigError(
            f"the key {_shown(str(pairs[-1]))} has no value; settings are pairs KEY VALUE, after "
            "all options"
        )


def read_yaml(path: str) -> dict[Any, Any]:
    """Keys and values of one file, ``_BASE_`` among them.

    Raises:
        ConfigError: it cannot be read as yaml, or holds something else; with the line if known.
    """
    if path.endswith(".py"):
        raise ConfigError(
            f"{path} is a LazyConfig, which Detectron2's tools/lazyconfig_train_net.py trains; "
            "here a yaml file is wanted"
        )
    try:
        values = _parse(path)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}" if mark else ""
        cause = error.problem or error.context or "not yaml"
        hint = "; yaml indents by spaces, not by tabs" if "\\t" in cause else ""
        raise ConfigError(f"{path}{place} cannot be read as yaml: {cause}{hint}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not text, and a yaml file is wanted") from None
    except Exception as error:  # what yaml makes of dates, numbers and tags can fail in any way
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(f"{path} cannot be read as yaml: {cause}") from None
    if values is None:
        raise ConfigError(f"{path} is empty")
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} holds no keys with values but {type(values).__name__} {reprlib.repr(values)}"
        )
    return values


def _parse(path: str) -> Any:
    with PathManager.open(path, "rb") as file:
        text = file.read().decode("utf-8-sig")
    try:
        return yaml.safe_load(text)
    except yaml.constructor.ConstructorError:
        values = yaml.unsafe_load(text)  # Python's own types, as Detectron2 allows them
        logger.warning("%s was read with yaml.unsafe_load: it may run code of its own", path)
        return values


def _merge(root: CfgNode, node: CfgNode, values: Any, prefix: str, where: str) -> None:
    """Set values of a group of keys; ``prefix`` leads to the group, ``where`` begins sentences."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        if not isinstance(name, str) or name not in node:
            raise ConfigError(where + _unknown_key(key, root))
        default = node[name]
        value = _decoded(value, default)
        if isinstance(default, CfgNode):
            if not isinstance(value, dict):
                raise ConfigError(f"{where}{key} is a group of keys, not {reprlib.repr(value)}")
            _merge(root, default, value, f"{key}.", where)
        else:
            node[name] = as_default(value, default, where + key)


def _decoded(value: Any, default: Any) -> Any:
    """A value as yacs reads it: text as Python writes it, or itself where that fails."""
    if not isinstance(value, str):
        return value
    try:
        found = literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value
    # A folder may be called 2024.
    return value if isinstance(default, str) and isinstance(found, (int, float)) else found


def _unknown_key(key: str, cfg: CfgNode) -> str:
    close = difflib.get_close_matches(key, list(_keys(cfg)), n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"unknown configuration key {_shown(key)}{hint}"


def _shown(key: str) -> str:
    """A key, or what stands for one, on one line."""
    key = key if len(key) <= 100 else key[:100] + "…"
    return key if key.isprintable() and key.strip() else repr(key)


def _keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
