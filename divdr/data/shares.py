"""Which images are trained on and which are kept back, where a data set has no such split."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence


def training_share(
    names: Sequence[str],
    share: float,
    *,
    seed: int = 0,
    group: str = "",
    strata: Sequence[int] | None = None,
) -> list[bool]:
    """For each file whether it is trained on; the others are kept back.

    A file's side follows from its name and the seed, so that others which come and go leave it
    where it is. Of two files or more, one at least is on each side.

    Args:
        names: of the files, each once.
        share: of the files to train on, above 0 and below 1. It is met on average.
        seed: another one draws others.
        group: files whose names (folders apart) are alike up to this text are on one side; "":
            every file for itself.
        strata: a number for each file, its class. The share is then met in every class, within one
            file, and a new file moves at most one of its own class. Groups come first: with them
            classes are not looked at.
    """
    drawn = [_draw(_unit(name, group), seed) for name in names]
    if strata is None or group:
        return _below(drawn, share)
    members: dict[int, list[int]] = defaultdict(list)
    for place, stratum in enumerate(strata):
        members[stratum].append(place)
    chosen = [False] * len(names)
    for places in members.values():
        places.sort(key=drawn.__getitem__)
        count = min(max(round(share * len(places)), 1), max(len(places) - 1, 1))
        for place in places[:count]:
            chosen[place] = True
    return chosen


def _below(drawn: Sequence[float], share: float) -> list[bool]:
    chosen = [number < share for number in drawn]
    # A handful of images may all fall on one side.
    if drawn and not any(chosen):
        least = min(drawn)
        return [number == least for number in drawn]
    if all(chosen) and len({*drawn}) > 1:
        most = max(drawn)
        return [number != most for number in drawn]
    return chosen


def _unit(name: str, group: str) -> str:
    file = name.rpartition("/")[2]
    if group and group in file:
        # Of whatever folder: a patient's images may lie in several.
        return file.partition(group)[0]
    return name


def _draw(unit: str, seed: int) -> float:
    """A number in [0, 1)."""
    digest = hashlib.sha256(f"{seed} {unit}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
