"""What all processes of a run do together or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from detectron2.utils import comm

from ..errors import DivdrError
from .setup import one_sentence

T = TypeVar("T")


def together(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a function on all processes; if one of them cannot go on, none does.

    A file that is missing on one machine alone would else stop its processes, and leave the others
    waiting for them until the process group's time is over. All processes must call this.

    Returns:
        What the function returns on this process.

    Raises:
        Exception: what the function raised on this process.
        DivdrError: it raised on another one; of that error's kind and with its sentence.
    """
    error: Exception | None = None
    try:
        result = function(*args, **kwargs)
    except Exception as caught:
        error = caught
    own = None if error is None else (_kind(error), one_sentence(error).splitlines()[0])
    told = comm.all_gather(own)
    if error is not None:
        raise error
    for rank, other in enumerate(told):
        if other is not None:
            kind, sentence = other
            raise kind(f"{sentence} (process {rank} of {len(told)})")
    return result


def first_on_machine() -> bool:
    """Whether this process is the first one of its machine."""
    if comm.get_world_size() == 1:
        return True
    try:
        return comm.get_local_rank() == 0
    except AssertionError:  # nobody told Detectron2 which processes share a machine
        return True


def _kind(error: Exception) -> type[DivdrError]:
    return type(error) if isinstance(error, DivdrError) else DivdrError
