"""The files of a training run: checkpoints to average, and what an exact continuation needs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checkpoint import read_weights, write_atomically
from ..errors import CheckpointError
from ..settings import Settings, entries
from ..settings.translation import TranslationSettings
from .expert_transformer import ExpertTransformer
from .vocabulary import Vocabulary

CONTINUATION = "last.pth"
_SETTINGS, _VOCABULARY, _MODEL, _STEP = "settings", "vocabulary", "model", "step"


class Trained(NamedTuple):
    """A model as a run left it.

    Attributes:
        model: in evaluation.
        vocabulary: its.
        settings: that it was trained by.
        steps: of the checkpoints that were averaged.
    """

    model: ExpertTransformer
    vocabulary: Vocabulary
    settings: TranslationSettings
    steps: list[int]


def as_node(settings: Settings) -> dict[str, Any]:
    """Settings as plain numbers, texts and lists, which ``Settings.of`` takes back."""
    node: dict[str, Any] = {}
    for entry in entries(type(settings)):
        value = getattr(settings, entry.attribute)
        if isinstance(value, Settings):
            value = as_node(value)
        node[entry.name] = list(value) if isinstance(value, tuple) else value
    return node


def checkpoint_files(folder: str | Path) -> dict[int, Path]:
    """Step to file of a run's checkpoints, in their order."""
    found = {int(path.stem.split("_")[1]): path for path in Path(folder).glob("step_*.pth")}
    return dict(sorted(found.items()))


def save_checkpoint(
    folder: Path,
    step: int,
    model: ExpertTransformer,
    vocabulary: Vocabulary,
    settings: TranslationSettings,
    continuation: Mapping[str, Any],
) -> None:
    """Write a checkpoint and what goes on from it, and remove the oldest one too many.

    Ended at any moment, the folder holds a state to go on from.

    Raises:
        CheckpointError: the disk is full, say.
    """
    content = {
        _STEP: step,
        _MODEL: model.state_dict(),
        _SETTINGS: as_node(settings),
        # As numbers: files of weights hold nothing else.
        _VOCABULARY: torch.frombuffer(bytearray(vocabulary.model), dtype=torch.uint8),
    }
    write_atomically(folder / f"step_{step:08d}.pth", content)
    write_atomically(folder / CONTINUATION, {_STEP: step, **continuation})
    for path in list(checkpoint_files(folder).values())[: -settings.training.averaged]:
        os.remove(path)


def read_continuation(folder: str | Path) -> dict[str, Any] | None:
    """What :func:`save_checkpoint` last put there, with the checkpoint; None if nothing is.

    Raises:
        CheckpointError: a file is damaged, or of another kind.
    """
    path = Path(folder) / CONTINUATION
    if not path.is_file():
        return None
    state = read_weights(path)
    step = _part(state, _STEP, path)
    content = _read(Path(folder) / f"step_{step:08d}.pth")
    # A checkpoint that is newer was written as the run ended, and will be again.
    for other, file in checkpoint_files(folder).items():
        if other > step:
            file.unlink()
    return {**state, **content}


def load_trained(folder: str | Path, count: int | None = None) -> Trained:
    """The mean of a run's last checkpoints (Vaswani et al., Section 6.1).

    Args:
        folder: of the run.
        count: how many; None: as the run's settings say. A run that has fewer gives all.

    Raises:
        CheckpointError: there is no checkpoint, or one is damaged or of another model.
    """
    files = checkpoint_files(folder)
    if not files:
        raise CheckpointError(f"{folder} holds no checkpoint of a translation run (step_*.pth)")
    last = _read(list(files.values())[-1])
    settings = TranslationSettings.of(last[_SETTINGS])
    chosen = list(files.items())[-(count or settings.training.averaged) :]
    weights = mean_weights([_read(path)[_MODEL] for _, path in chosen])
    vocabulary = vocabulary_of(last)
    model = ExpertTransformer(len(vocabulary), settings.coe.experts, settings.model)
    load_weights(model, weights, Path(folder))
    return Trained(model.eval(), vocabulary, settings, [step for step, _ in chosen])


def vocabulary_of(content: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary that a checkpoint holds."""
    return Vocabulary(bytes(content[_VOCABULARY].tolist()))


def mean_weights(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of models' weights, summed up in double precision.

    Raises:
        CheckpointError: they are of different models.
    """
    first = states[0]
    shapes = {name: value.shape for name, value in first.items()}
    for other in states[1:]:
        if {name: value.shape for name, value in other.items()} != shapes:
            raise CheckpointError("the checkpoints to average are of different models")
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
        for name, value in first.items()
    }


def load_weights(model: ExpertTransformer, weights: Mapping[str, Tensor], source: Path) -> None:
    """Take over all weights.

    Raises:
        CheckpointError: they are of another model.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        raise CheckpointError(f"the weights in {source} are of another model") from None


def _read(path: Path) -> dict[str, Any]:
    content = read_weights(path)
    for name in (_STEP, _MODEL, _SETTINGS, _VOCABULARY):
        _part(content, name, path)
    return content


def _part(content: Any, name: str, path: Path) -> Any:
    if not isinstance(content, dict) or name not in content:
        raise CheckpointError(f"{path} is no checkpoint of a translation run: it lacks {name}")
    return content[name]
