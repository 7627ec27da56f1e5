"""Files of experts that were trained alone.

What an expert learned is worth nothing behind another base: its file holds the hash of its own.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from ..checkpoint import read_weights, write_atomically
from ..errors import CheckpointError

if TYPE_CHECKING:
    from .single_gate import SingleGate


def base_hash(system: SingleGate) -> str:
    """SHA-256 of what every expert depends on: base, gate and clusters."""
    digest = hashlib.sha256()
    for part in (system.shared, system.base, system.gate):
        for name, value in part.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def write_expert(system: SingleGate, number: int, folder: str) -> str:
    """Write an expert's weights and its stacker's, with the hash of the base that they need.

    Args:
        system: the mixture.
        number: of the expert.
        folder: gets ``expert_K.pth``.

    Returns:
        The file's path.

    Raises:
        CheckpointError: the file cannot be written.
    """
    weights = {n: v.cpu() for n, v in system.state_dict().items() if _is_of(n, number)}
    path = os.path.join(folder, f"expert_{number}.pth")
    write_atomically(path, {"expert": number, "base": base_hash(system), "weights": weights})
    return path


def take_expert(system: SingleGate, path: str) -> int:
    """Load an expert that was trained alone into a mixture.

    Returns:
        Its number.

    Raises:
        CheckpointError: the file is no expert's, or one of another base or architecture.
    """
    content = read_weights(path)
    if not isinstance(content, dict) or {"expert", "base", "weights"} - set(content):
        raise CheckpointError(f"{path} holds no single expert")
    number, weights = int(content["expert"]), content["weights"]
    if content["base"] != base_hash(system):
        raise CheckpointError(f"expert {number} of {path} was trained behind another base")
    own = {n: v.shape for n, v in system.state_dict().items() if _is_of(n, number)}
    if not own or own != {n: v.shape for n, v in weights.items()}:
        raise CheckpointError(f"expert {number} of {path} is of another architecture")
    system.load_state_dict(weights, strict=False)
    return number


def _is_of(name: str, number: int) -> bool:
    """Whether a parameter belongs to an expert or to its stacker."""
    return name.startswith((f"experts.{number}.", f"stackers.{number}."))
