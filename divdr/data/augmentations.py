"""Augmentations beyond Detectron2's resize, crop and one flip, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from detectron2.data import transforms as T

from ..errors import ConfigError

_MAKERS: dict[str, Callable[[], list[T.Augmentation]]] = {
    "vertical_flip": lambda: [T.RandomFlip(horizontal=False, vertical=True)],
    # Seen from above, nothing says where up is.
    "quarter_turns": lambda: [T.RandomRotation([0, 90, 180, 270], sample_style="choice")],
    "colour": lambda: [
        T.RandomBrightness(0.7, 1.3),
        T.RandomContrast(0.7, 1.3),
        T.RandomSaturation(0.5, 1.5),
    ],
}


def extra_augmentations(names: Sequence[str]) -> list[T.Augmentation]:
    """Those of ``INPUT.EXTRA_AUGMENTATIONS``, in the order named.

    Raises:
        ConfigError: a name is unknown.
    """
    unknown = [name for name in names if name not in _MAKERS]
    if unknown:
        raise ConfigError(
            f"INPUT.EXTRA_AUGMENTATIONS {unknown[0]!r} is unknown; known are {', '.join(_MAKERS)}"
        )
    return [augmentation for name in names for augmentation in _MAKERS[name]()]
