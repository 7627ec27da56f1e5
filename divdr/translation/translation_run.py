"""Training a translation model, from pairs of sentences to checkpoints; it can go on where it was.

Optimiser and schedule are the Transformer's (Vaswani et al., Section 5.3): Adam with β₂ 0.98, and a
learning rate that grows linearly and then falls with the inverse square root of the step.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, NonFiniteLossError
from ..settings.translation import TranslationSettings
from .expert_transformer import ExpertTransformer
from .parallel_text import Batch, ParallelText, TokenPair, encode_pairs, epoch_batches
from .run_files import (
    as_node,
    load_weights,
    read_continuation,
    save_checkpoint,
    vocabulary_of,
)
from .translation_losses import TranslationLosses, translation_losses
from .vocabulary import Vocabulary

logger = logging.getLogger(__name__)

MODELS = ("base", "big", "coe")
LOG = "log.jsonl"
_LOG_PERIOD = 50


def model_settings(name: str, settings: TranslationSettings) -> TranslationSettings:
    """One of the three models of the paper's Table 5, from the base model's sizes.

    Args:
        name: "base" and "big" have one decoder, "big" is twice as wide everywhere and has twice as
            many heads; "coe" is the base model with EXPERTS decoders.
        settings: the base model's.
    """
    if name == "coe":
        return settings
    settings = replace(settings, coe=replace(settings.coe, experts=1))
    if name == "base":
        return settings
    model = settings.model
    twice = {key: 2 * getattr(model, key) for key in ("width", "feedforward", "heads")}
    return replace(settings, model=replace(model, **twice))


def learning_rate(step: int, peak: float, warmup: int) -> float:
    """Of a step, counted from 1: linear up to ``peak``, then with the inverse square root."""
    return peak * min(step / warmup, math.sqrt(warmup / step))


class TranslationRun:
    """A training run in a folder. Where the folder holds one already, it goes on exactly there.

    Args:
        folder: for checkpoints and ``log.jsonl``; is made.
        text: to train on.
        settings: of everything.
        device: where to train.

    Attributes:
        step: steps that are done.

    Raises:
        ConfigError: the folder holds a run with other settings.
        CheckpointError: what it holds is damaged.
        DataError: the text cannot be used.
    """

    def __init__(
        self,
        folder: str | Path,
        text: ParallelText,
        settings: TranslationSettings,
        device: str | torch.device = "cpu",
    ) -> None:
        self.folder = Path(folder)
        self.settings = settings
        self.device = torch.device(device)
        self.folder.mkdir(parents=True, exist_ok=True)
        before = read_continuation(self.folder)
        if before is None:
            lines = [*text.source, *text.target]
            self.vocabulary = Vocabulary.learn(lines, settings.model.vocabulary)
        else:
            _check_same(before["settings"], as_node(settings), self.folder)
            self.vocabulary = vocabulary_of(before)
        self.pairs: list[TokenPair] = encode_pairs(
            text, self.vocabulary, settings.model.max_tokens, settings.training.longest
        )
        torch.manual_seed(settings.training.seed)
        self.model = ExpertTransformer(
            len(self.vocabulary),
            settings.coe.experts,
            settings.model,
            settings.coe.selector_trains_encoder,
        ).to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), betas=(0.9, 0.98), eps=1e-9)
        self.step = self._epoch = self._batch = 0
        if before is not None:
            self._restore(before)

    def train(self, stop: int | None = None) -> None:
        """Train to the end, or until ``stop`` steps are done; the schedule stays the whole run's.

        Raises:
            NonFiniteLossError: a loss is infinite or not a number.
        """
        training = self.settings.training
        last = min(training.steps, training.steps if stop is None else stop)
        self.model.train()
        batches = self._batches()
        while self.step < last:
            losses = self._step(next(batches))
            self.step += 1
            ends = self.step == last
            if self.step % _LOG_PERIOD == 0 or ends:
                self._log(losses)
            if self.step % training.checkpoint_period == 0 or ends:
                self._save()

    def _step(self, batch: Batch) -> TranslationLosses:
        training = self.settings.training
        rate = learning_rate(self.step + 1, training.learning_rate, training.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses = translation_losses(
            self.model,
            batch,
            self.settings.coe,
            training.label_smoothing,
            self.step / training.steps,
        )
        if not math.isfinite(float(losses.total.detach())):
            raise NonFiniteLossError(f"the loss of step {self.step + 1} is not finite")
        self.optimizer.zero_grad()
        losses.total.backward()
        if training.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), training.clip_norm)
        self.optimizer.step()
        return losses

    def _batches(self) -> Iterator[Batch]:
        """Batches from where the run stands; counts epochs and batches as it goes."""
        training = self.settings.training
        while True:
            plan = epoch_batches(self.pairs, training.batch_tokens, training.seed, self._epoch)
            for number, rows in enumerate(plan):
                if number < self._batch:
                    continue
                self._batch = number + 1
                yield Batch.of([self.pairs[row] for row in rows]).to(self.device)
            self._epoch += 1
            self._batch = 0

    def _log(self, losses: TranslationLosses) -> None:
        experts = len(self.model.decoders)
        line: dict[str, Any] = {
            "step": self.step,
            "epoch": self._epoch,
            "loss_experts": round(float(losses.experts.detach()) / experts, 4),
            "tcp": [round(value, 4) for value in losses.tcp.mean(0).tolist()],
        }
        if losses.selection is not None and losses.lesson is not None:
            line["loss_selection"] = round(float(losses.selection.detach()), 4)
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        logger.info(json.dumps(line))

    def _save(self) -> None:
        state = {
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
            "epoch": self._epoch,
            "batch": self._batch,
        }
        save_checkpoint(self.folder, self.step, self.model, self.vocabulary, self.settings, state)

    def _restore(self, before: dict[str, Any]) -> None:
        load_weights(self.model, before["model"], self.folder)
        self.optimizer.load_state_dict(before["optimizer"])
        torch.set_rng_state(before["random"])
        if before["cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(before["cuda"])
        self.step, self._epoch, self._batch = (before[name] for name in ("step", "epoch", "batch"))
        path = self.folder / LOG
        if path.is_file():
            # Lines of steps that will be taken again.
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if json.loads(line)["step"] <= self.step]
            path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _check_same(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """See that a run goes on with the settings that it began with; the search is no part of it.

    Raises:
        ConfigError: names the first that differs.
    """
    for group in ("MODEL", "COE", "TRAINING"):
        for name, value in now[group].items():
            was = before[group].get(name)
            if was != value:
                raise ConfigError(
                    f"{folder} holds a run with {name} {was}, not {value}; name another folder"
                )
