"""The latest gate activation of every training image."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import CheckpointError
from ..routing import from_all_processes, several_processes, to_device

logger = logging.getLogger(__name__)

# Updates that wait, at most, until their rows are looked at.
_MOST_WAITING = 64


class ActivationBank:
    """Keeps one activation vector per image key, and merges those of all ranks.

    Clustering runs over A(x) of the whole data set (DivDR, section 3.2). Evaluating all images for
    that is expensive, so the bank remembers what training computed last for each.

    Whatever order rows arrive in, they are presented in the order of their keys: equal content
    means equal tensors on every rank. M is the number of keys, D the length of an activation.

    Rows are kept in half precision, rounded as they arrive, so that a checkpoint of half the size
    holds all that the bank knows; numbers beyond its range become the largest it has. Rows that
    are not finite are left out. Which they are is known on the device alone, so new rows are looked
    at when the bank is read, and an update does not wait for the device.

    Attributes:
        former_keys: whether keys may be those of an earlier checkpoint, see `rename`.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        """Make an empty bank for activations of length `dim`; ValueError if that is below 1."""
        if dim < 1:
            raise ValueError(f"An activation bank needs rows of length 1 or more, got {dim}.")
        self.dim = dim
        self.former_keys = False
        self._storage = torch.empty(0, dim, device=device, dtype=torch.half)
        self._waiting: list[tuple[list[str], Tensor, int]] = []
        self._slots: dict[str, int] = {}
        self._steps: list[int] = []
        self._changed: set[str] = set()
        self._sorted: list[str] | None = None

    def __len__(self) -> int:
        self._settle()
        return len(self._slots)

    def __contains__(self, key: str) -> bool:
        self._settle()
        return key in self._slots

    @property
    def device(self) -> torch.device:
        """Where the rows are stored."""
        return self._storage.device

    @property
    def keys(self) -> list[str]:
        """Keys in sorted order."""
        self._settle()
        if self._sorted is None:
            self._sorted = sorted(self._slots)
        return list(self._sorted)

    @property
    def rows(self) -> Tensor:
        """Activations (M, D) in float32, in the order of `keys`; a copy."""
        return self._gather(self.keys)

    @property
    def steps(self) -> Tensor:
        """Step (M,) of int64 at which each row was written, in the order of `keys`; on the CPU."""
        keys = self.keys
        return torch.tensor([self._steps[self._slots[key]] for key in keys], dtype=torch.long)

    def update(self, keys: Sequence[str], rows: Tensor, step: int) -> None:
        """Store activations.

        A row that carries a later step than `step` stays. If a key occurs twice, its last row
        counts. Rows that are not finite are left out, whatever stood there before stays.

        Args:
            keys: image keys, N of them.
            rows: their activations (N, D); detached.
            step: training step they were computed at.

        Raises:
            ValueError: shapes do not fit.
        """
        if rows.dim() != 2 or rows.shape != (len(keys), self.dim):
            raise ValueError(
                f"Expected rows of shape {(len(keys), self.dim)} for {len(keys)} keys, "
                f"got {tuple(rows.shape)}."
            )
        with torch.inference_mode(False), torch.no_grad():
            taken = rows.detach().to(self.device, copy=True)
            self._waiting.append((list(keys), taken, step))
            if len(self._waiting) >= _MOST_WAITING:
                self._settle()

    def replace(self, keys: Sequence[str], rows: Tensor, step: int) -> None:
        """Forget everything and store these rows, as after an evaluation of the whole data set.

        On several ranks, call it on all of them, each with its part, before `synchronise`.
        """
        self.clear()
        self.update(keys, rows, step)

    def clear(self) -> None:
        """Forget everything. On several ranks, call it on all of them."""
        with torch.inference_mode(False):
            self._storage = self._storage.new_empty(0, self.dim)
        self._waiting.clear()
        self._slots.clear()
        self._steps.clear()
        self._changed.clear()
        self._sorted = None

    def rename(self, names: Mapping[str, str]) -> None:
        """Give rows other keys, and forget those without one.

        For an earlier checkpoint, whose keys are paths, and to drop images that are no longer
        there. On several ranks, call it on all of them, with equal content.

        Args:
            names: new key by present key; one for several rows takes that of the latest step.
        """
        rows, steps = self.rows, self.steps.tolist()
        changed = {names[key] for key in self._changed if key in names}
        order = sorted(range(len(steps)), key=steps.__getitem__)
        old = self.keys
        kept = {names[old[i]]: i for i in order if old[i] in names}
        self.clear()
        self._write(kept, rows, steps)
        self._changed = changed
        self.former_keys = False

    def discard(self, keys: Iterable[str]) -> None:
        """Forget some keys, if they are there; as `rename` in all else, but for its flag."""
        gone = {*keys} & {*self.keys}
        if gone:
            former = self.former_keys
            self.rename({key: key for key in self.keys if key not in gone})
            self.former_keys = former

    def forget_before(self, step: int) -> None:
        """Forget rows written before a step. On several ranks, call it after `synchronise`."""
        old = [key for key, at in zip(self.keys, self.steps.tolist(), strict=True) if at < step]
        self.discard(old)

    def to(self, device: torch.device | str) -> ActivationBank:
        """Move the rows to a device; returns the bank itself."""
        with torch.inference_mode(False):
            self._storage = self._storage.to(device)
        return self

    def synchronise(self) -> None:
        """Give every rank the rows of all ranks; a collective call.

        Only rows written since the last call travel. Of several rows for a key the one with the
        latest step wins, and of those with the same step the one of the lowest rank. Without an
        initialised process group of several ranks nothing happens.
        """
        if not several_processes():
            return
        self._settle()
        mine = sorted(self._changed)
        steps = [self._steps[self._slots[key]] for key in mine]
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, (mine, steps))
        # Rows go as tensors: of a whole data set they are a hundred megabytes.
        longest = max(len(keys) for keys, _ in gathered)
        if longest == 0:
            return
        own = self._storage.new_zeros(longest, self.dim)
        own[: len(mine)] = self._gather(mine, self._storage.dtype)
        # As bytes, which every back end of processes knows.
        parts = from_all_processes(own.flatten().view(torch.uint8)).view(self._storage.dtype)
        rows = parts.view(len(gathered), longest, self.dim)
        # Where the winner of each key stands, as (rank, position).
        winners: dict[str, tuple[int, int]] = {}
        for rank, (keys, their_steps) in enumerate(gathered):
            for position, key in enumerate(keys):
                held = winners.get(key)
                if held is None or their_steps[position] > gathered[held[0]][1][held[1]]:
                    winners[key] = (rank, position)
        for rank, (_, their_steps) in enumerate(gathered):
            won = {key: place for key, (owner, place) in winners.items() if owner == rank}
            self._write(won, rows[rank], their_steps)
        self._changed.clear()

    def state_dict(self) -> dict[str, Any]:
        """Content as tensors on the CPU, lists and numbers (loads with weights_only=True).

        Rows are of half precision, and all there is to them.
        """
        return {
            "dim": self.dim,
            "keys": self.keys,
            "rows": self._gather(self.keys, self._storage.dtype).cpu(),
            "steps": self.steps,
            "former_keys": self.former_keys,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved content; on several ranks, the same one on all.

        Earlier checkpoints hold rows in float32, which are rounded, and paths as keys.

        Raises:
            CheckpointError: the rows are of another length, or parts do not fit together.
        """
        if state["dim"] != self.dim:
            raise CheckpointError(
                f"The checkpoint's activation bank holds rows of length {state['dim']}, "
                f"this model's has {self.dim}."
            )
        keys, rows, steps = list(state["keys"]), state["rows"], state["steps"].tolist()
        if rows.shape != (len(keys), self.dim) or len(steps) != len(keys):
            raise CheckpointError("The checkpoint's activation bank is damaged: sizes differ.")
        self.clear()
        finite = rows.isfinite().all(1).tolist()
        self._write({key: i for i, key in enumerate(keys) if finite[i]}, rows, steps)
        # All ranks load the same rows, so there is nothing to tell the others.
        self._changed.clear()
        self.former_keys = bool(keys) and bool(state.get("former_keys", True))

    def _gather(self, keys: Iterable[str], dtype: torch.dtype = torch.float) -> Tensor:
        slots = torch.tensor([self._slots[key] for key in keys], dtype=torch.long)
        return self._storage[to_device(slots, self.device)].to(dtype)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _settle(self) -> None:
        """Store what waits, but for rows that are not finite; looks at the device once."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        finite = torch.cat([rows.isfinite().all(1) for _, rows, _ in waiting]).tolist()
        kept: dict[str, int] = {}  # where the row of each key stands among all that waited
        steps: list[int] = []
        for keys, _, step in waiting:
            whole, finite = finite[: len(keys)], finite[len(keys) :]
            if not all(whole):
                logger.warning(
                    "Step %d: %d of %d activations are not finite and are left out",
                    step,
                    whole.count(False),
                    len(whole),
                )
            start = len(steps)
            steps += [step] * len(keys)
            for place, key in enumerate(keys, start):
                if whole[place - start] and (key not in kept or steps[kept[key]] <= step):
                    kept[key] = place
        self._write(kept, torch.cat([rows for _, rows, _ in waiting]), steps)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _write(self, positions: dict[str, int], rows: Tensor, steps: Sequence[int]) -> None:
        """Store rows[positions[key]] with the step at the same position, unless outdated."""
        slots: list[int] = []
        sources: list[int] = []
        for key, position in positions.items():
            slot = self._slots.get(key)
            if slot is None:
                slot = self._slots[key] = len(self._slots)
                self._steps.append(steps[position])
                self._sorted = None
            elif steps[position] < self._steps[slot]:
                continue
            self._steps[slot] = steps[position]
            self._changed.add(key)
            slots.append(slot)
            sources.append(position)
        if not slots:
            return
        self._reserve(len(self._slots))
        taken = rows.detach()[to_device(torch.tensor(sources), rows.device)]
        limit = torch.finfo(self._storage.dtype).max
        taken = taken.clamp(-limit, limit).to(self._storage)
        self._storage[to_device(torch.tensor(slots), self.device)] = taken

    def _reserve(self, size: int) -> None:
        """Grow by doubling, so that adding images one by one copies each row only a few times."""
        capacity = len(self._storage)
        if size > capacity:
            grown = self._storage.new_empty(max(size, 2 * capacity, 256), self.dim)
            grown[:capacity] = self._storage
            self._storage = grown
