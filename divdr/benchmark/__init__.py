"""Measuring plans: time, multiply-adds and memory beside the published way of running.

Axes, here and in the modules: N images of a batch, T = 3 transforms [up, keep, down], D = T ×
cells, the length of A(x), C channels, H rows, W columns.
"""

from .cases import Case, close_gates, closed_share
from .figures import (
    Line,
    Target,
    as_numbers,
    case_table,
    line_table,
    lines,
    memory_table,
    target_table,
    targets,
)
from .memory import Memory, measure_memory
from .published_run import PublishedRun
from .run_modes import (
    Against,
    CapturedRoute,
    CaseResult,
    LiveBytes,
    Row,
    fixed_route,
    measure,
    peak_bytes,
)
from .timing import Times, describe, gemm_peak, in_turns

__all__ = [
    "Against",
    "CapturedRoute",
    "Case",
    "CaseResult",
    "Line",
    "LiveBytes",
    "Memory",
    "PublishedRun",
    "Row",
    "Target",
    "Times",
    "as_numbers",
    "case_table",
    "close_gates",
    "closed_share",
    "describe",
    "fixed_route",
    "gemm_peak",
    "in_turns",
    "line_table",
    "lines",
    "measure",
    "measure_memory",
    "memory_table",
    "peak_bytes",
    "target_table",
    "targets",
]
