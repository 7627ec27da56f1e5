"""Detectron2's checkpointer, made safe against kills and against weights of another model."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import Tensor

from ..checkpoint import is_whole, read_weights, write_atomically, write_text_atomically
from ..errors import CheckpointError
from .agreement import together

logger = logging.getLogger(__name__)


class RoutingCheckpointer(DetectionCheckpointer):
    """Saves atomically, loads with ``weights_only``, and refuses weights that do not fit.

    Args:
        model: the model.
        save_dir: folder of the checkpoints.
        strict: refuse any shape that differs (evaluation, resuming). Otherwise only weights of
            another routing space are refused; a head of other classes starts anew.
        checkpointables: more objects with ``state_dict`` and ``load_state_dict``.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        save_dir: str = "",
        *,
        strict: bool = False,
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.strict = strict

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name``.pth, whole or not at all, then note it as the last.

        Raises:
            CheckpointError: the weights are not finite; the file before stays the last.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        state = self.model.state_dict()
        broken = _first_non_finite(state)
        if broken is not None:
            raise CheckpointError(
                f"weight {broken!r} is not finite; checkpoint {name} is not written and the last "
                "good one stays"
            )
        data = {"model": state}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(kwargs)
        path = Path(self.save_dir) / f"{name}.pth"
        logger.info("Saving checkpoint to %s", path)
        write_atomically(path, data)
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Note a file of ``save_dir`` as the last checkpoint."""
        write_text_atomically(Path(self.save_dir) / "last_checkpoint", last_filename_basename)

    def has_checkpoint(self) -> bool:
        """Whether a complete checkpoint is there."""
        return bool(self.get_checkpoint_file())

    def get_checkpoint_file(self) -> str:
        """The last checkpoint if it is complete, else the newest that is; "" if none is."""
        folder = Path(self.save_dir)
        note = folder / "last_checkpoint"
        names = [note.read_text().strip()] if note.is_file() else []
        if names and is_whole(folder / names[0]):
            return str(folder / names[0])
        files = sorted(folder.glob("*.pth"), key=lambda f: f.stat().st_mtime, reverse=True)
        for file in files:
            if is_whole(file):
                logger.warning("Checkpoint %s is cut short; using %s", names or "", file)
                return str(file)
        return ""

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Continue from the last complete checkpoint if ``resume``, else load weights alone.

        Raises:
            CheckpointError: see :meth:`load`; or processes find different checkpoints.
        """
        if resume:
            self._check_same_for_all()
        strict = self.strict
        self.strict = strict or (resume and self.has_checkpoint())
        try:
            return super().resume_or_load(path, resume=resume)
        finally:
            self.strict = strict

    def _check_same_for_all(self) -> None:
        """One machine would go on where another starts anew."""
        found = comm.all_gather(os.path.basename(self.get_checkpoint_file()))
        if len(set(found)) > 1:
            other = next(rank for rank, name in enumerate(found) if name != found[0])
            raise CheckpointError(
                f"in {self.save_dir} process 0 finds {found[0] or 'no checkpoint'} and process "
                f"{other} {found[other] or 'none'}: all machines need the same folder"
            )

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a file, or nothing for ""; see Detectron2's checkpointer. For all processes at once:
        one that cannot load stops them all.

        Raises:
            CheckpointError: there is no such file, it is damaged, or belongs to another model.
        """
        # Before Detectron2's own, which would have the others wait for this process.
        together(_check_exists, path)
        return together(super().load, path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        loaded = read_weights(filename)
        if not isinstance(loaded, dict):
            raise CheckpointError(f"checkpoint {filename} holds no weights by name")
        if "blobs" in loaded:  # Detectron's own format before Detectron2
            blobs = {k: v for k, v in loaded["blobs"].items() if not k.endswith("_momentum")}
            return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}
        if "model" not in loaded:
            loaded = {"model": loaded}
        url = getattr(self, "_parsed_url_during_load", None)
        if url is not None and "matching_heuristics=True" in url.query:
            loaded["matching_heuristics"] = True
        return loaded

    def _load_model(self, checkpoint: Any) -> Any:
        state = checkpoint["model"]
        if not checkpoint.get("matching_heuristics", False):
            weights = {k.removeprefix("module."): v for k, v in state.items()}
            own = {k.removeprefix("module."): v for k, v in self.model.state_dict().items()}
            _check_routing_space(weights, own)
            self._check_shapes(weights, own)
        return super()._load_model(checkpoint)

    def _check_shapes(self, weights: dict[str, Any], own: dict[str, Tensor]) -> None:
        for name, value in weights.items():
            if name not in own or tuple(value.shape) == tuple(own[name].shape):
                continue
            message = (
                f"weight {name!r} has shape {tuple(value.shape)} in the checkpoint and "
                f"{tuple(own[name].shape)} in this model"
            )
            if len(value.shape) == own[name].dim() and value.shape[1:] == own[name].shape[1:]:
                message += (
                    f": the checkpoint was trained for {value.shape[0]} classes, this model has "
                    f"{own[name].shape[0]}"
                )
            if self.strict:
                raise CheckpointError(message)
            logger.warning("%s; it starts anew", message)


def _check_exists(path: str) -> None:
    if path and "://" not in path and not os.path.isfile(path):
        raise CheckpointError(f"checkpoint {path} does not exist")


def _check_routing_space(weights: dict[str, Any], own: dict[str, Tensor]) -> None:
    prefix = next(
        (
            k[: -len("initial.ops")]
            for k in (n.partition(".ops")[0] + ".ops" for n in own)
            if k.endswith("network.initial.ops")
        ),
        None,
    )
    if prefix is None or not any(k.startswith(prefix) for k in weights):
        return
    for name in sorted(k for k in {*weights, *own} if k.startswith(prefix)):
        if name not in weights or name not in own:
            where = "this model" if name not in weights else "the checkpoint"
            raise CheckpointError(
                f"the checkpoint belongs to another routing space: only {where} has {name!r}"
            )
        if tuple(weights[name].shape) != tuple(own[name].shape):
            raise CheckpointError(
                f"the checkpoint belongs to another routing space: {name!r} has shape "
                f"{tuple(weights[name].shape)} in it and {tuple(own[name].shape)} in this model"
            )


def _first_non_finite(state: dict[str, Tensor]) -> str | None:
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return name
    return None


def load_for_evaluation(model: torch.nn.Module, path: str, **checkpointables: Any) -> None:
    """Load weights, and the state of ``checkpointables`` where the file has it, strictly.

    Args:
        model: the model.
        path: checkpoint file.
        checkpointables: objects with ``load_state_dict`` by their name in the file.

    Raises:
        CheckpointError: no file is named, it is damaged, or it belongs to another model.
    """
    if not path:
        raise CheckpointError("no weights to evaluate: set MODEL.WEIGHTS to a checkpoint file")
    checkpointer = RoutingCheckpointer(model, os.path.dirname(path), strict=True)
    rest = checkpointer.load(path, checkpointables=[])
    for name, target in checkpointables.items():
        if target is not None and name in rest:
            target.load_state_dict(rest[name])
