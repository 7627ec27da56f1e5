"""What ``divdr train``, ``evaluate`` and ``check`` do: one process or several, and their end."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import errno
import gc
import logging
import os
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import default_setup, launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from ..command_line import INTERRUPTED, report_errors
from ..data import read_once
from ..errors import ConfigError, DivdrError
from ..known_warnings import leave_out_known_warnings
from ..packaged_configs import find_config
from .console import use_screen
from .execution_modes import load_trained
from .own_data import fitted_if_asked
from .run_screens import example_image, show_first_screen, show_last_screen
from .setup import (
    keep_freed_memory,
    load_config,
    make_output_folder,
    on_available_device,
    together,
)
from .trainer import Trainer, check_run_data

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def quiet_when_full() -> Iterator[None]:
    """Let lines go that log files set up inside the block cannot take any more.

    A full disk is reported once, by the checkpoint or table that cannot be written. Without this,
    every line of the log, and the end of the process, would tell it too, by a traceback.
    """
    logging.raiseExceptions = False
    yield
    # Detectron2 has registered the closing of its log files now; what is registered later runs
    # earlier.
    atexit.register(_close)


@contextlib.contextmanager
def telling_when_full(folder: str) -> Iterator[None]:
    """Name a run's folder where the block fails because the disk is full.

    Raises:
        DivdrError: it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DivdrError(
            f"the run in {folder} cannot write its files ({error.strerror}); its last good "
            "checkpoint stays"
        ) from error


def _close() -> None:
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for handler in {h for logger in loggers for h in getattr(logger, "handlers", ())}:
        stream = getattr(handler, "stream", None)
        if stream is None or stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            continue
        with contextlib.suppress(OSError, ValueError):
            stream.close()


def run(args: argparse.Namespace) -> None:
    """Start as many processes as the arguments (or torchrun) say, and train or evaluate.

    Args:
        args: of ``detectron2.engine.default_argument_parser``.
    """
    cfg = _config(args)
    device = cfg.MODEL.DEVICE
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _join_torchrun(device)
        main(args, cfg)
        _leave()
        return
    if device == "cpu":  # Detectron2's processes talk by NCCL wherever they see a GPU
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args, cfg),
        )
    except ProcessExitedException as error:  # the process has reported its error already
        sys.exit(error.exit_code)
    except KeyboardInterrupt:  # as has, once more, the first process
        sys.exit(INTERRUPTED)


def _leave() -> None:
    """Leave together, and without a thread of the process group.

    One that lets go of something of Python's while the interpreter ends takes its process with it.
    Threads end with the last reference to their group; Detectron2 keeps two, and the trained model
    one in a circle.
    """
    comm.synchronize()
    comm._LOCAL_PROCESS_GROUP = None
    if hasattr(comm, "_get_global_gloo_group"):
        comm._get_global_gloo_group.cache_clear()
    gc.collect()
    dist.destroy_process_group()


@report_errors
def main(args: argparse.Namespace, cfg: CfgNode | None = None) -> OrderedDict | None:
    """One process of a run.

    Args:
        args: of ``detectron2.engine.default_argument_parser``.
        cfg: the configuration that they name; None: it is read here.
    """
    try:
        cfg = configure(args, cfg)
        with telling_when_full(cfg.OUTPUT_DIR):
            if args.eval_only:
                return _evaluate(cfg)
            return _train(cfg, args.resume)
    except KeyboardInterrupt:
        if comm.is_main_process():
            raise
        sys.exit(INTERRUPTED)  # one of them tells it


def _train(cfg: CfgNode, resume: bool) -> OrderedDict | None:
    with read_once([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]):
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=resume)
        show_first_screen(trainer)
        image = ""
        if comm.is_main_process():
            image = example_image([*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN])
    results = trainer.train()
    show_last_screen(trainer.cfg, image)
    return results


def _evaluate(cfg: CfgNode) -> OrderedDict:
    if not cfg.DATASETS.TEST:
        raise ConfigError("--eval-only evaluates DATASETS.TEST, which names no data set")
    with read_once(cfg.DATASETS.TEST):
        together(check_run_data, cfg, training=False)
        results = Trainer.test(cfg, load_trained(cfg))
    show_last_screen(cfg)
    return results


def check_run(config_file: str, overrides: Sequence[str] = ()) -> str:
    """See that a run could begin, as its trainer does before the first iteration.

    Settings, all data sets, model, optimiser and weights are looked at; nothing is written.

    Args:
        config_file: see ``load_config``.
        overrides: likewise.

    Returns:
        What would be trained, in a sentence.

    Raises:
        DivdrError: something cannot be used; the message says what and why.
    """
    cfg = on_available_device(load_config(config_file, overrides))
    place = os.path.abspath(cfg.OUTPUT_DIR or ".")
    while not os.path.exists(place):
        place = os.path.dirname(place)
    make_output_folder(place)
    with tempfile.TemporaryDirectory() as folder:
        cfg.OUTPUT_DIR = folder
        if "://" in cfg.MODEL.WEIGHTS:  # would be fetched
            cfg.MODEL.WEIGHTS = ""
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        count = sum(parameter.numel() for parameter in trainer.model.parameters())
        return (
            f"nothing is wrong: {len(trainer.data_loader.dataset)} images of "
            f"{', '.join(cfg.DATASETS.TRAIN)}, {trainer.max_iter} iterations of "
            f"{cfg.SOLVER.IMS_PER_BATCH}, {count / 1e6:.2f} million parameters on "
            f"{cfg.MODEL.DEVICE}, evaluated on {', '.join(cfg.DATASETS.TEST) or 'nothing'}"
        )


def configure(args: argparse.Namespace, cfg: CfgNode | None = None) -> CfgNode:
    """Configuration of the arguments; sets up loggers, output folder and seeds.

    Args:
        args: see :func:`main`.
        cfg: likewise.

    Raises:
        ConfigError: see ``load_config``; or nothing can be written in ``OUTPUT_DIR``.
        DataError: see ``fit_to_data``.
    """
    cfg = on_available_device(load_config(args.config_file, args.opts) if cfg is None else cfg)
    together(make_output_folder, cfg.OUTPUT_DIR)
    if cfg.MODEL.DEVICE == "cpu":
        keep_freed_memory()
    verbose = getattr(args, "verbose", False)  # Detectron2's own arguments have none
    if not verbose:  # of each process
        leave_out_known_warnings()
    with quiet_when_full():
        use_screen(cfg.OUTPUT_DIR, verbose=verbose)
        cfg = together(fitted_if_asked, cfg, args.opts)
        cfg.freeze()
        default_setup(cfg, args)
        use_screen(cfg.OUTPUT_DIR, verbose=verbose)
    return cfg


@report_errors
def _config(args: argparse.Namespace) -> CfgNode:
    """The configuration, on whose device as many processes as the arguments say can run."""
    if args.config_file:  # Detectron2 reads the file, too
        args.config_file = str(find_config(args.config_file))
    cfg = load_config(args.config_file, args.opts)
    device = cfg.MODEL.DEVICE
    processes, there = args.num_gpus, torch.cuda.device_count()
    if processes < 0 or not 0 <= args.machine_rank < args.num_machines:
        raise ConfigError(
            f"--num-gpus {processes}, --num-machines {args.num_machines} and --machine-rank "
            f"{args.machine_rank} do not go together"
        )
    if device.startswith("cuda") and processes > 1:
        if not torch.cuda.is_available():
            raise ConfigError(
                f"--num-gpus is {processes}, but there is no GPU here; with MODEL.DEVICE cpu as "
                "many processes train on the CPU"
            )
        if 0 < there < processes:
            raise ConfigError(f"--num-gpus is {processes}, but {there} GPUs are here")
    return cfg


def _join_torchrun(device: str) -> None:
    local_rank = int(os.environ["LOCAL_RANK"])
    backend = "gloo"
    if torch.cuda.is_available() and device != "cpu":
        torch.cuda.set_device(local_rank)
        backend = "nccl"
    # As under Detectron2's launch: NCCL's own ten minutes are less than process 0 alone may need.
    dist.init_process_group(backend, timeout=DEFAULT_TIMEOUT)
    _make_local_groups(int(os.environ["LOCAL_WORLD_SIZE"]))


def _make_local_groups(size: int) -> None:
    """Tell Detectron2 which processes share a machine: ``size`` after each other."""
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(size)
        return
    # Detectron2 0.6 does it in its launch alone.
    for first in range(0, dist.get_world_size(), size):
        ranks = list(range(first, first + size))
        group = dist.new_group(ranks)
        if dist.get_rank() in ranks:
            comm._LOCAL_PROCESS_GROUP = group
