"""The first screen of a training, which says what is trained on what, and its last one, which says
where everything is and what to type next.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from ..modeling import attached_routing, has_routed_backbone, unwrap
from .console import show

if TYPE_CHECKING:
    from .trainer import Trainer

_NAMED = 3  # data sets that are named


def show_first_screen(trainer: Trainer) -> None:
    """Show what is trained, on what, for how long and where it lands, on the main process.

    To be called with the data sets at hand (``divdr.data.read_once``), when it is known where the
    training begins.

    Args:
        trainer: of a run that can begin.
    """
    if not comm.is_main_process():
        return
    cfg = trainer.cfg
    rows = [
        ("model", _model(trainer)),
        ("routing", _routing(trainer)),
        ("weights", _start(trainer)),
        ("data", _data(cfg.DATASETS.TRAIN)),
        ("evaluated", _data(cfg.DATASETS.TEST) or "nothing: DATASETS.TEST is empty"),
        ("training", _schedule(trainer)),
        ("on", _machine(cfg)),
        ("output", f"{cfg.OUTPUT_DIR or '.'}: log.txt has every line, config.yaml every setting"),
        ("stop", f"Ctrl-C; the same command with --resume goes on{_saving(trainer)}"),
    ]
    show("\n".join(f"{what:<10}{text}" for what, text in rows if text))


def _model(trainer: Trainer) -> str:
    cfg, model = trainer.cfg, unwrap(trainer.model)
    count = sum(parameter.numel() for parameter in model.parameters())
    name = cfg.MODEL.META_ARCHITECTURE
    backbone = getattr(model, "backbone", None)
    if backbone is not None:
        name += f" on {type(backbone).__name__}"
    elif name == "ImageClassifier":
        name += f", {cfg.MODEL.CLASSIFIER.NAME}"
    return f"{name}, {count / 1e6:.2f} million parameters"


def _routing(trainer: Trainer) -> str:
    if not has_routed_backbone(trainer.model):
        return ""
    settings, routing = trainer.cfg.MODEL.ROUTING, attached_routing(trainer.model)
    gates = f"the route {settings.ROUTE}" if settings.ROUTE else f"{settings.GATE} gates"
    parts = [
        f"{settings.LAYERS} layers, {settings.SCALES} scales, {settings.CHANNELS} channels, {gates}"
    ]
    if settings.BUDGET.WEIGHT:
        parts.append(f"budget loss {settings.BUDGET.WEIGHT:g}, μ {settings.BUDGET.TARGET:g}")
    if routing is not None and routing.experts is not None:
        parts.append(f"{routing.experts.num_experts} local experts")
    return "; ".join(parts)


def _start(trainer: Trainer) -> str:
    if trainer.resumed:
        return f"of iteration {trainer.start_iter}, where the run goes on"
    return trainer.cfg.MODEL.WEIGHTS or "none: the model starts anew"


def _data(names: Sequence[str]) -> str:
    parts = []
    for name in names[:_NAMED]:
        images = len(DatasetCatalog.get(name))
        classes = _classes(name)
        parts.append(f"{name}, {images} images" + (f" of {classes} classes" if classes else ""))
    if len(names) > _NAMED:
        parts.append(f"{len(names) - _NAMED} more")
    return "; ".join(parts)


def _classes(name: str) -> int:
    """Classes of a data set, by the names that Detectron2 or divdr give them; 0: unknown."""
    metadata = MetadataCatalog.get(name)
    kind = metadata.get("evaluator_type", "")
    keys = ["thing_classes", "stuff_classes", "classes"]
    if kind.endswith("sem_seg"):
        keys.insert(0, "stuff_classes")
    return next((len(metadata.get(key)) for key in keys if metadata.get(key)), 0)


def _schedule(trainer: Trainer) -> str:
    batch, images = trainer.cfg.SOLVER.IMS_PER_BATCH, len(trainer.data_loader.dataset)
    epochs = trainer.max_iter * batch / images
    return f"{trainer.max_iter} iterations of {batch} images = {epochs:.3g} epochs"


def _machine(cfg: CfgNode) -> str:
    device = cfg.MODEL.DEVICE
    if device.startswith("cuda"):
        device = f"{device} ({torch.cuda.get_device_name(device)})"
    count = comm.get_world_size()
    processes = f"{count} processes on " if count > 1 else ""
    precision = cfg.SOLVER.AMP.DTYPE if cfg.SOLVER.AMP.ENABLED else "float32"
    seed = f"seed {cfg.SEED}" if cfg.SEED >= 0 else "a seed of its own (SEED sets it)"
    return f"{processes}{device}, {precision}, {seed}"


def _saving(trainer: Trainer) -> str:
    period = trainer.cfg.SOLVER.CHECKPOINT_PERIOD
    if not 0 < period < trainer.max_iter:
        return ""
    return f" from the last checkpoint, one every {period} iterations"


def example_image(names: Sequence[str]) -> str:
    """An image file of the data sets, the first; a name in its place where they have none."""
    for name in names:
        for record in DatasetCatalog.get(name)[:1]:
            if os.path.isfile(record.get("file_name") or ""):
                return _near(record["file_name"])
    return "PHOTO.jpg"


def show_last_screen(cfg: CfgNode, image: str = "") -> None:
    """Show where everything is and what to type next, on the main process.

    Args:
        cfg: of the run.
        image: to predict after a training; "": it was an evaluation.
    """
    if not comm.is_main_process():
        return
    folder = Path(cfg.OUTPUT_DIR)
    names = ["model_final.pth", "model_ema.pth", "metrics.json"] if image else []
    names += ["inference/results.json", "log.txt"]
    there = [name for name in names if (folder / name).is_file()]
    rows = [("files", f"{folder}: {', '.join(there)}")]
    if image and (folder / "model_final.pth").is_file():
        weights = ["--weights", str(folder / "model_final.pth")]
        predict = ["predict", *weights, "--output", str(folder / "predictions"), image]
        run = f"{_called(folder)}={folder}"
        rows.append(("predict", _command(predict)))
        rows.append(("report", _command(["report", "--output", f"{folder}/report.html", run])))
    show("\n".join(f"{what:<10}{text}" for what, text in rows))


def _called(folder: Path) -> str:
    return folder.absolute().name or "run"


def _command(words: Sequence[str]) -> str:
    """What starts the verb from the current folder, by the program that was called."""
    called = Path(sys.argv[0])
    program = [_near(called)] if called.stem == "divdr" else [_near(sys.executable), "-m", "divdr"]
    return shlex.join([*program, *words])


def _near(path: str | Path) -> str:
    """Relative to the current folder where it is below it."""
    absolute = os.path.abspath(path)
    relative = os.path.relpath(absolute)
    return absolute if relative.startswith(os.pardir) else relative
