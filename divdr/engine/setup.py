"""From the command line to a checked configuration."""

from __future__ import annotations

import ctypes
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from ..command_line import one_sentence
from ..config import get_divdr_config
from ..data import use_custom_data
from ..errors import ConfigError, DivdrError
from ..packaged_configs import find_config
from .config_file import merge_file, merge_pairs
from .settings_check import check_config

logger = logging.getLogger(__name__)


def load_config(config_file: str = "", overrides: Sequence[str] = ()) -> CfgNode:
    """Detectron2's and divdr's defaults, then a yaml file, then ``KEY VALUE`` pairs; checked.

    The data sets of ``DATASETS.CUSTOM`` are registered.

    Args:
        config_file: a file, or the name of one of :func:`divdr.list_models`; "": none.
        overrides: keys and values in turn.

    Raises:
        ConfigError: the file cannot be used, an unknown key, a value of the wrong type or out of
            its range, or settings that contradict each other.
    """
    cfg = get_divdr_config()
    if config_file:
        config_file = str(find_config(config_file))
        if os.path.isdir(config_file):
            raise ConfigError(f"configuration file {config_file} is a folder")
        merge_file(cfg, config_file)
    merge_pairs(cfg, overrides)
    check_config(cfg)
    use_custom_data(cfg)
    return cfg


def on_available_device(cfg: CfgNode) -> CfgNode:
    """The config, or on a machine without GPUs a copy that uses the CPU for "cuda"; it warns."""
    if torch.cuda.is_available() or not cfg.MODEL.DEVICE.startswith("cuda"):
        return cfg
    logger.warning("MODEL.DEVICE is %s, but there is no GPU here: using the CPU", cfg.MODEL.DEVICE)
    frozen, cfg = cfg.is_frozen(), cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    if frozen:
        cfg.freeze()
    return cfg


# Numbers of parameters of glibc's mallopt, from its malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Let the C library keep the memory of maps for the next ones, in place of the system.

    A system that takes memory back has to clear every page that it gives out again, which costs a
    step of training on a CPU some 5 %. What a process holds at most stays about the same.

    Returns:
        Whether the C library could be told: it is glibc's, and no variable of the environment
        (``MALLOC_…``, ``GLIBC_TUNABLES``) says otherwise.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # of another system
        return False
    return bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1) and mallopt(_MMAP_THRESHOLD, 2**25))


def make_output_folder(path: str, what: str = "OUTPUT_DIR") -> None:
    """Make a folder, with those above it, if it is not there, and see that files can be written.

    Of several processes the main one does, which is the one that writes.

    Args:
        path: "" is no folder, and none is made.
        what: the setting or option that named it.

    Raises:
        ConfigError: it is a file, cannot be made, or nothing can be written in it.
    """
    if not path or "://" in path or not comm.is_main_process():
        return
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except FileExistsError:
        raise ConfigError(f"{what} {path} is a file, not a folder") from None
    except OSError as error:
        raise ConfigError(f"{what} {path} cannot be written: {error.strerror}") from None


T = TypeVar("T")


def together(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a function on all processes; if one of them cannot go on, none does.

    A file that is missing on one machine alone would else stop its processes, and leave the others
    waiting for them until the process group's time is over. All processes must call this.

    Returns:
        What the function returns on this process.

    Raises:
        Exception: what the function raised on this process.
        DivdrError: it raised on another one; of that error's kind and with its sentence.
    """
    error: Exception | None = None
    try:
        result = function(*args, **kwargs)
    except Exception as caught:
        error = caught
    own = None if error is None else (_kind(error), one_sentence(error).splitlines()[0])
    sentences = comm.all_gather(own)
    if error is not None:
        raise error
    for rank, other in enumerate(sentences):
        if other is not None:
            kind, sentence = other
            raise kind(f"{sentence} (process {rank} of {len(sentences)})")
    return result


def first_on_machine() -> bool:
    """Whether this process is the first one of its machine."""
    if comm.get_world_size() == 1:
        return True
    try:
        return comm.get_local_rank() == 0
    except AssertionError:  # Detectron2 does not know which processes share a machine
        return True


def _kind(error: Exception) -> type[DivdrError]:
    return type(error) if isinstance(error, DivdrError) else DivdrError
