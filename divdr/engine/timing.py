"""Times of several functions over several inputs, in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from ..benchmark import in_turns


def time_in_turns(
    functions: Mapping[str, Callable[[Any], Any]], inputs: Sequence[Any], rounds: int
) -> dict[str, list[float]]:
    """Call every function on every input, in turns; on the first input once more, to warm up.

    Args:
        functions: by name.
        inputs: what they are called with.
        rounds: how often each.

    Returns:
        Seconds of every call, by function (``divdr.benchmark.in_turns``).
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number, x in enumerate(tqdm(inputs, desc="timing", leave=False, disable=None)):
        calls = {name: partial(function, x) for name, function in functions.items()}
        for name, times in in_turns(calls, rounds, device, warm_up=int(number == 0)).items():
            seconds[name].extend(times.seconds)
    return seconds
