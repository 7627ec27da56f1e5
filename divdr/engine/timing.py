"""Times of several functions that take turns, so that a machine's moods meet all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm


def time_in_turns(
    functions: Mapping[str, Callable[[Any], Any]], inputs: Sequence[Any], rounds: int
) -> dict[str, list[float]]:
    """Call every function on every input, in turns; the first input once more before, to warm up.

    Args:
        functions: by name.
        inputs: what they are called with.
        rounds: how often each.

    Returns:
        Seconds of every call, by function; waiting for a GPU included.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        for x in inputs[:1]:
            function(x)
    for _ in tqdm(range(rounds), desc="timing", leave=False, disable=None):
        for x in inputs:
            for name, function in functions.items():
                _wait()
                start = time.perf_counter()
                function(x)
                _wait()
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
