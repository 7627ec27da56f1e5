"""How far from its cost target a run ended."""

from __future__ import annotations

from pathlib import Path

from ..engine import load_config
from ..visualization import RunData


def off_target(folder: Path) -> dict[str, float]:
    """Real cost of the test images against ``BUDGET.TARGET_SHARE`` or ``TARGET_GFLOPS``, per cent.

    Args:
        folder: of a finished run, evaluated on one data set.

    Returns:
        "gflops", of the whole real cost, and "share", of the part that gates decide upon; 2.0 is
        2 % more than was asked for. Nothing for a run without a cost target.
    """
    budget = load_config(str(folder / "config.yaml")).MODEL.ROUTING.BUDGET
    results: dict = next(iter((RunData.load(folder).results or {}).values()), {})
    figures = results.get("routing")
    if not figures or not (budget.TARGET_SHARE or budget.TARGET_GFLOPS):
        return {}
    stem, span = figures["stem_gflops"], figures["all_open_gflops"] - figures["stem_gflops"]
    asked = budget.TARGET_GFLOPS or stem + budget.TARGET_SHARE * span
    return {
        "gflops": 100.0 * (figures["real_gflops"] / asked - 1.0),
        "share": 100.0 * ((figures["real_gflops"] - stem) / (asked - stem) - 1.0),
    }
