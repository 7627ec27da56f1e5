"""What a setting is: a dataclass field that knows its meaning, unit, range and source.

Plain Python: whoever wants to know a default needs neither torch nor Detectron2.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, TypeVar, cast, get_args, get_type_hints

from ..errors import ConfigError

T = TypeVar("T")
S = TypeVar("S", bound="Settings")

# What a value is called after its type; yacs' configurations hold no other types.
KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    tuple: "a list",
}
# Entries of every group that was asked for: reading annotations takes time.
_KNOWN: dict[type[Settings], tuple[Entry, ...]] = {}
_ITEMS = {int: "whole numbers", float: "numbers", str: "texts"}


@dataclass(frozen=True)
class Range:
    """Numbers that a setting may be, or each number of a list.

    Attributes:
        low, high: bounds, which belong to it.
        above, below: bounds which do not.
        whole: for lists, whose numbers have no type of their own.
    """

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    whole: bool = False

    def __contains__(self, value: Any) -> bool:
        if type(value) not in ((int,) if self.whole else (int, float)):
            return False
        inside = self.low <= value <= self.high and self.above < value < self.below
        return inside and abs(value) != math.inf

    def __str__(self) -> str:
        if self.low > -math.inf and self.high < math.inf:
            return f"between {self.low:g} and {self.high:g}"
        bounds = (
            (f"at least {self.low:g}", self.low > -math.inf),
            (f"above {self.above:g}", self.above > -math.inf),
            (f"at most {self.high:.10g}", self.high < math.inf),
            (f"below {self.below:g}", self.below < math.inf),
        )
        return " and ".join(text for text, given in bounds if given) or "finite"

    def check(self, key: str, value: Any) -> None:
        """See that a number, or each number of a list, belongs to it.

        Raises:
            ConfigError: it does not; the sentence names ``key``.
        """
        listed = isinstance(value, (list, tuple))
        for number in value if listed else [value]:
            if number not in self:
                kind = _ITEMS[int if self.whole else float]
                what = f"must hold {kind}, {self}," if listed else f"must be {self},"
                raise ConfigError(f"{key} {what} not {reprlib.repr(number)}")


def check_texts(key: str, values: Sequence[Any]) -> None:
    """See that a list holds texts alone.

    Raises:
        ConfigError: it does not; the sentence names ``key``.
    """
    for value in values:
        if not isinstance(value, str):
            raise ConfigError(f"{key} must hold texts, not {reprlib.repr(value)}")


def check_not_empty(key: str, values: Sequence[Any]) -> None:
    """See that a list holds something.

    Raises:
        ConfigError: it does not; the sentence names ``key``.
    """
    if not values:
        raise ConfigError(f"{key} must hold at least one value")


def _is_list(value: Any) -> bool:
    """Whether it is a list of whatever kind (a LazyConfig has its own)."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def as_default(value: Any, default: Any, what: str) -> Any:
    """A value as the type of a default: a whole number may stand for a number, any list for a list.

    Args:
        value: as a file, a command line or a program gives it.
        default: decides the type; None takes any that a configuration may hold.
        what: begins the error's sentence.

    Raises:
        ConfigError: it is of another type.
    """
    kind = type(default)
    if type(value) is kind or (default is None and type(value) in KINDS):
        return value
    if kind in (list, tuple) and _is_list(value):
        return kind(value)
    if type(value) is int and kind is float:
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{what} is too large for a number: {reprlib.repr(value)}") from None
    hint = ' ("" is none)' if value is None and kind is str else ""
    raise ConfigError(
        f"{what} must be {KINDS.get(kind, kind.__name__)}, as {reprlib.repr(default)}, not "
        f"{reprlib.repr(value)}{hint}"
    )


def setting(
    default: T,
    meaning: str,
    *,
    unit: str = "",
    low: float = -math.inf,
    above: float = -math.inf,
    high: float = math.inf,
    below: float = math.inf,
    choices: tuple[str, ...] = (),
    not_empty: bool = False,
    source: str = "",
) -> T:
    """Declare a field of a :class:`Settings`.

    Args:
        default: its value where nothing sets it; lists are given as tuples.
        meaning: a sentence or more, for ``docs/settings.md``.
        unit: "" for names, counts that the meaning explains, and plain ratios.
        low: least number, or least of each number of a list.
        above: bound from below that does not belong to the range.
        high: largest number, likewise.
        below: bound from above that does not belong to the range.
        choices: the texts that it may be; () for any.
        not_empty: a list must hold something.
        source: paper and equation, section or table; "" is divdr's own.
    """
    about = {
        "meaning": meaning,
        "unit": unit,
        "allowed": Range(low=low, above=above, high=high, below=below),
        "choices": choices,
        "not_empty": not_empty,
        "source": source,
    }
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class Entry:
    """One setting, or one group of them, as a :class:`Settings` declares it.

    Attributes:
        attribute: its name in the dataclass, in lower case.
        key: its full name in a configuration, ``MODEL.ROUTING.LAYERS``.
        default: where nothing sets it.
        kind: bool, int, float, str, tuple, or the class of a group.
        item: of a list's items; None for other kinds, and for lists that hold lists.
        meaning, unit, allowed, choices, not_empty, source: see :func:`setting`.
    """

    attribute: str
    key: str
    default: Any
    kind: type
    item: type | None = None
    meaning: str = ""
    unit: str = ""
    allowed: Range = field(default_factory=Range)
    choices: tuple[str, ...] = ()
    not_empty: bool = False
    source: str = ""

    @property
    def name(self) -> str:
        """The last part of :attr:`key`."""
        return self.attribute.upper()

    def accept(self, value: Any) -> Any:
        """A value as this setting holds it: whole numbers as floats, lists as tuples.

        Raises:
            ConfigError: it is of another type, or out of its range.
        """
        if issubclass(self.kind, Settings):
            return self._group(value)
        value = as_default(value, self.default, self.key)
        if self.kind is tuple:
            value = tuple(self._item(item) for item in value)
            if self.not_empty:
                check_not_empty(self.key, value)
            if self.item is str:
                check_texts(self.key, value)
        if (self.item or self.kind) in (int, float):
            self.allowed.check(self.key, value)
        if self.choices and value not in self.choices:
            raise ConfigError(
                f"{self.key} must be one of {', '.join(c or repr(c) for c in self.choices)}, not "
                f"{reprlib.repr(value)}"
            )
        return value

    def _group(self, value: Any) -> Settings:
        if isinstance(value, self.kind):
            return cast(Settings, value)
        if isinstance(value, Mapping):
            return cast("type[Settings]", self.kind).of(value)
        raise ConfigError(f"{self.key} is a group of keys, not {reprlib.repr(value)}")

    def _item(self, item: Any) -> Any:
        if _is_list(item):
            return tuple(item)
        if self.item is float and type(item) is int:
            return as_default(item, 0.0, self.key)
        return item


@dataclass(frozen=True)
class Settings:
    """A group of settings, which cannot hold one that is out of its range.

    Attributes:
        KEY: where the group stands in a configuration.

    Raises:
        ConfigError: a setting is of another type than its default, or out of its range.
    """

    KEY: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for entry in entries(type(self)):
            object.__setattr__(self, entry.attribute, entry.accept(getattr(self, entry.attribute)))

    @classmethod
    def of(cls: type[S], node: Mapping[str, Any]) -> S:
        """The settings that a group of a configuration holds.

        Args:
            node: ``cfg.MODEL.ROUTING``, say. Keys that it lacks keep their defaults, and those of
                others are left alone.

        Raises:
            ConfigError: one is of another type than its default, or out of its range.
        """
        return cls(**{e.attribute: node[e.name] for e in entries(cls) if e.name in node})

    @classmethod
    def choices(cls, name: str) -> tuple[str, ...]:
        """The texts that one of the settings may be; () for any."""
        return next(entry.choices for entry in entries(cls) if entry.attribute == name)


def entries(group: type[Settings]) -> tuple[Entry, ...]:
    """The settings of a group, and the groups in it, as they are declared."""
    if group not in _KNOWN:
        _KNOWN[group] = tuple(_entries(group))
    return _KNOWN[group]


def walk(group: type[Settings]) -> Iterator[type[Settings]]:
    """A group, and after it all groups in it."""
    yield group
    for entry in entries(group):
        if issubclass(entry.kind, Settings):
            yield from walk(entry.kind)


def _entries(group: type[Settings]) -> Iterator[Entry]:
    hints = get_type_hints(group)
    for declared in fields(group):
        hint, about = hints[declared.name], declared.metadata
        kind = getattr(hint, "__origin__", hint)
        item = next(iter(get_args(hint)), None)
        if item not in _ITEMS:
            item = None
        key = f"{group.KEY}.{declared.name.upper()}"
        found = Entry(declared.name, key, declared.default, kind, item, **about)
        yield replace(found, allowed=replace(found.allowed, whole=(item or kind) is int))
