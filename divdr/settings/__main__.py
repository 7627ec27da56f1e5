"""``python -m divdr.settings``: print ``docs/settings.md``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from . import GROUPS, OUTSIDE, Entry, Settings, entries, walk

_HEAD = """# Settings

Every key that divdr adds to Detectron2's configuration, and last the settings of translation, which
are none. Made by `python -m divdr.settings > docs/settings.md` from `divdr/settings`, where each
stands once.

Keys are set in yaml files, or as pairs `KEY VALUE` on the command line. There, and where programs
set them, a whole number may stand where a number with a decimal point is the default; only
Detectron2's own `cfg.merge_from_file` and `merge_from_list` refuse that.

In Python the same settings are dataclasses with names in lower case:
`RoutingSettings.of(cfg.MODEL.ROUTING).budget.weight` reads a configuration, and
`divdr.config.add_settings(cfg, BudgetSettings(weight=0.8))` writes into one.

Sources: DR is Li et al., "Learning Dynamic Routing for Semantic Segmentation" (CVPR 2020); DivDR is
"Diversified Dynamic Routing for Vision Tasks"; DynK-Hydra is "Dynamic top-K ensemble ..." (2023);
CoE is "Collaboration of Experts: Achieving 80% Top-1 Accuracy on ImageNet with 100M FLOPs";
Transformer is "Attention Is All You Need" (2017). Where none is named, the setting is divdr's own.
"""
_COLUMNS = ("key", "default", "unit", "range", "meaning", "source")


def page() -> str:
    """The text of ``docs/settings.md``: a table for each group."""
    groups = (part for group in (*GROUPS, *OUTSIDE) for part in walk(group))
    return "\n".join([_HEAD, *(line for part in groups for line in _table(part))])


def _table(group: type[Settings]) -> Iterator[str]:
    yield f"## {group.KEY}: {group.__name__}\n"
    yield f"{inspect.cleandoc(group.__doc__ or '')}\n"
    own = [entry for entry in entries(group) if not issubclass(entry.kind, Settings)]
    if own:
        yield _row(*_COLUMNS)
        yield _row(*["---"] * len(_COLUMNS))
    for entry in own:
        cells = (_shown(entry.default), entry.unit, _range(entry), entry.meaning, entry.source)
        yield _row(f"`{entry.name}`", *cells)
    if own:
        yield ""


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _shown(value: object) -> str:
    """A default as yaml and the command line take it."""
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, tuple):
        return "`[" + ", ".join(_shown(item).strip("`") for item in value) + "]`"
    return f"`{value}`"


def _range(entry: Entry) -> str:
    if entry.choices:
        return ", ".join(f'`"{choice}"`' for choice in entry.choices)
    if entry.kind is bool:
        return "`True`, `False`"
    kind = entry.item or entry.kind
    if kind not in (int, float):
        return "at least one text" if entry.not_empty else "any"
    bounds = str(entry.allowed)
    if bounds == "finite":
        bounds = "whole" if kind is int else "any"
    each = "each " if entry.kind is tuple else ""
    return f"{each}{bounds}{'; at least one' if entry.not_empty else ''}"


if __name__ == "__main__":
    print(page(), end="")
