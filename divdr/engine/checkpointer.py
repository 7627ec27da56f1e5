"""Detectron2's checkpointer, made safe against kills and against weights of another model."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from ..checkpoint import (
    find_weights,
    is_whole,
    read_weights,
    rename,
    weight_file,
    write_atomically,
    write_text_atomically,
)
from ..checkpoint.fit import (
    check_finite,
    check_routing_space,
    is_finite,
    lacking,
    other_shapes,
    real_numbers,
    some,
    without_shared,
)
from ..command_line import one_sentence
from ..errors import CheckpointError, DivdrError
from ..modeling import RoutedResNet
from ..routing import lasting
from .about import KEY, About
from .setup import together

logger = logging.getLogger(__name__)

AVERAGED = "model_ema.pth"
"""File of a run's averaged weights, from which no run can go on."""

# What loading a state raises that is of something else.
_UNFIT = (
    *(AssertionError, AttributeError, IndexError, KeyError),
    *(RuntimeError, TypeError, ValueError),
)


class RoutingCheckpointer(DetectionCheckpointer):
    """Saves atomically, loads with ``weights_only``, and refuses weights that do not fit.

    Args:
        model: the model.
        save_dir: folder of the checkpoints.
        strict: refuse missing weights, shapes, classes and images that differ (evaluation,
            resuming). Otherwise only weights of another routing space and files of which nothing
            fits are refused; a head of other classes starts anew.
        about: what this run says of its model, once for each data set. The first is saved; all are
            compared with what a file says.
        checkpointables: more objects with ``state_dict`` and ``load_state_dict``.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        save_dir: str = "",
        *,
        strict: bool = False,
        about: Sequence[About] = (),
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.strict = strict
        self.about = tuple(about)

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name``.pth, whole or not at all, then note it as the last.

        Raises:
            CheckpointError: the weights are not finite, or the file cannot be written; the file
                before stays the last.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        state = self.model.state_dict()
        broken = next((key for key, value in state.items() if not is_finite(value)), None)
        if broken is not None:
            raise CheckpointError(
                f"weight {broken!r} is not finite; checkpoint {name} is not written and the last "
                "good one stays"
            )
        data = {**self.content(state), **kwargs}
        path = Path(self.save_dir) / f"{name}.pth"
        logger.info("Saving checkpoint to %s", path)
        write_atomically(path, data)
        self.tag_last_checkpoint(path.name)

    def content(self, state: dict[str, Any], training: bool = True) -> dict[str, Any]:
        """What a checkpoint holds.

        Args:
            state: state dict of the model.
            training: with what only a resumed run needs, optimiser and averages.
        """
        data: dict[str, Any] = {"model": state}
        if self.about:
            data[KEY] = self.about[0].as_dict()
        for key, obj in self.checkpointables.items():
            if training or key not in ("trainer", "weight_average"):
                data[key] = obj.state_dict()
        return data

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
        names = [note.read_text(errors="replace").strip()] if note.is_file() else []
        if names and is_whole(folder / names[0]):
            return str(folder / names[0])
        files = sorted(folder.glob("*.pth"), key=lambda f: f.stat().st_mtime, reverse=True)
        for file in files:
            if file.name != AVERAGED and is_whole(file):
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

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a file, or nothing for "". For all processes at once: one that cannot load stops
        them all.

        Args:
            path: file, folder of a run, or address; "?matching_heuristics=True" behind it finds
                names by Detectron2's heuristics, as a ``.pkl`` of its model zoo does by itself.
            checkpointables: which of the other objects are loaded; None: all that the file has.

        Returns:
            What else the file holds.

        Raises:
            CheckpointError: there is no such file, it is damaged, or belongs to another model; or
                none of its weights fits.
        """
        return together(self._load, path, checkpointables)

    def _load(self, path: str, checkpointables: list[str] | None) -> dict[str, Any]:
        if not path:
            logger.info("No weights are named; the model starts anew")
            return {}
        file, heuristics = _located(path)
        logger.info("Loading %s", file)
        checkpoint = self._load_file(file)
        if heuristics:
            checkpoint["matching_heuristics"] = True
        self._check_about(file, About.from_dict(checkpoint.get(KEY)))
        self._fill(file, checkpoint)
        for name in self.checkpointables if checkpointables is None else checkpointables:
            if name in checkpoint:
                _restore(file, name, self.checkpointables[name], checkpoint.pop(name))
        return checkpoint

    def _load_file(self, filename: str) -> dict[str, Any]:
        loaded = read_weights(filename)
        blobs = loaded.get("blobs") if isinstance(loaded, dict) else None
        if isinstance(blobs, dict):  # Detectron's format before Detectron2
            kept = {k: v for k, v in blobs.items() if not str(k).endswith("_momentum")}
            loaded = {"model": kept, "__author__": "Caffe2", "matching_heuristics": True}
        found = find_weights(loaded)
        if found is None:
            raise CheckpointError(f"checkpoint {filename} holds no weights by name")
        if found.keys and found.keys != ("model",):
            logger.info("The weights in %s are those under %s", filename, ".".join(found.keys))
        rest = loaded if found.keys else {}
        result = {k: v for k, v in rest.items() if k not in found.keys[:1]}
        result["model"] = found.weights
        if filename.endswith(".pyth"):  # of pycls
            result["matching_heuristics"] = True
        return result

    def _check_about(self, file: str, found: About | None) -> None:
        """Compare what the file says of its model with what this run says."""
        for run in self.about if found is not None else ():
            assert found is not None
            differs = [found.other_input(run), found.other_classes(run)]
            if self.strict:
                differs.insert(0, found.other_task(run))
            for text in differs:
                if text is None:
                    continue
                if self.strict:
                    raise CheckpointError(f"checkpoint {file} {text}")
                logger.warning("Checkpoint %s %s", file, text)

    def _for_routed_resnets(self, file: str, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """Weights of an ordinary ResNet under a routed one's names, which are then the model's."""
        for name, module in self.model.named_modules():
            if isinstance(module, RoutedResNet):
                prefix = f"{name}." if name else ""
                found = module.own_names(file, checkpoint["model"], prefix)
                if found is not None:
                    logger.info("The 3×3 convolutions in %s go to the experts of that kind", file)
                    checkpoint["model"] = found
                    checkpoint["matching_heuristics"] = False
        return checkpoint["model"]

    def _fill(self, file: str, checkpoint: dict[str, Any]) -> None:
        """Give the model the weights; say in a line what did not fit."""
        own = lasting(self.model.state_dict())
        weights = self._for_routed_resnets(file, checkpoint)
        if not checkpoint.get("matching_heuristics", False):
            weights, taken_off = rename(weights, own)
            if taken_off:
                logger.info(
                    "Taken off the names of the weights in %s: %s", file, ", ".join(taken_off)
                )
            check_routing_space(file, lasting(weights), own)
            for sentence in other_shapes(file, weights, own):
                if self.strict:
                    raise CheckpointError(sentence)
                logger.warning("%s; it starts anew", sentence)
            check_finite(file, weights, own)
            checkpoint["model"] = weights
        held = list(weights)
        try:
            incompatible = self._load_model(checkpoint)
        except _UNFIT as error:  # Detectron2's heuristics, of a file that is not what they expect
            raise CheckpointError(
                f"the weights in checkpoint {file} do not fit this model ({one_sentence(error)})"
            ) from error
        absent = without_shared(self.model, incompatible.missing_keys)
        numbers = real_numbers(own)
        missing = [name for name in numbers if name in absent]
        counters = [name for name in absent if name not in missing]
        if missing:
            sentence = lacking(file, missing, numbers, held)
            if self.strict or {*numbers} <= {*incompatible.missing_keys}:
                raise CheckpointError(sentence)
            logger.warning("%s; they start anew", sentence)
        if self.strict and incompatible.incorrect_shapes:
            name, there, here = incompatible.incorrect_shapes[0]
            raise CheckpointError(
                f"weight {name!r} has shape {tuple(there)} in checkpoint {file} and {tuple(here)} "
                "in this model"
            )
        for names, words in (
            (counters, "lacks counters and flags of this model, which stay as they start"),
            (incompatible.unexpected_keys, "holds weights that this model has not"),
        ):
            if names:
                logger.warning("Checkpoint %s %s: %s", file, words, some(names))


def _located(path: str) -> tuple[str, bool]:
    """The local file that is meant, and whether names are to be matched by heuristics."""
    file, _, query = (path, "", "") if os.path.exists(path) else path.partition("?")
    if "://" in file:
        try:
            file = PathManager.get_local_path(file)
        except Exception as error:  # of the network, the server, or the disk
            reason = " ".join(str(error).split()) or type(error).__name__
            raise CheckpointError(
                f"the weights {path} (MODEL.WEIGHTS) cannot be fetched ({reason})"
            ) from None
    return str(weight_file(file)), "matching_heuristics=True" in query


def _restore(file: str, name: str, target: Any, state: Any) -> None:
    logger.info("Loading %s from %s", name, file)
    try:
        target.load_state_dict(state)
    except _UNFIT as error:
        if isinstance(error, DivdrError):
            raise
        raise CheckpointError(
            f"what checkpoint {file} holds as {name!r} does not fit this run "
            f"({one_sentence(error)})"
        ) from error


def load_for_evaluation(
    model: torch.nn.Module, path: str, *, about: Sequence[About] = (), **checkpointables: Any
) -> About | None:
    """Load weights, and the state of ``checkpointables`` where the file has it, strictly.

    Args:
        model: the model.
        path: checkpoint file, folder of a run, or address.
        about: what the config and each data set say of the model.
        checkpointables: objects with ``load_state_dict`` by their name in the file.

    Returns:
        What the file says of its model; None: nothing.

    Raises:
        CheckpointError: no file is named, it is damaged, lacks weights, holds some that are not
            finite, or belongs to another model, other classes or images.
    """
    if not path:
        raise CheckpointError("no weights to evaluate: set MODEL.WEIGHTS to a checkpoint file")
    present = {name: target for name, target in checkpointables.items() if target is not None}
    checkpointer = RoutingCheckpointer(model, strict=True, about=about, **present)
    return About.from_dict(checkpointer.load(path).get(KEY))
