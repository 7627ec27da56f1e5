"""Measuring plans: time, multiply-adds and memory beside the published code's execution.

Axes, here and in the modules: N images of a batch, T = 3 transforms [up, keep, down], D = T ×
cells, the length of A(x), C channels, H rows, W columns.
"""

from .cases import Case, close_gates, closed_share
from .figures import (
    Line,
    Target,
    as_numbers,
    case_table,
    fit_table,
    lines,
    memory_table,
    target_table,
    targets,
)
from .memory import LiveBytes, Memory, measure_memory, peak_bytes
from .published_run import PublishedRun
from .run_modes import (
    Against,
    CaseResult,
    Measurement,
    fixed_route,
    measure,
)
from .timing import Times, describe_machine, gemm_peak, in_turns
from .training_steps import (
    StepMeasurement,
    TrainingResult,
    measure_training,
    training_fits,
    training_numbers,
    training_table,
)

__all__ = [
    "Against",
    "Case",
    "CaseResult",
    "Line",
    "LiveBytes",
    "Measurement",
    "Memory",
    "PublishedRun",
    "StepMeasurement",
    "Target",
    "Times",
    "TrainingResult",
    "as_numbers",
    "case_table",
    "close_gates",
    "closed_share",
    "describe_machine",
    "fit_table",
    "fixed_route",
    "gemm_peak",
    "in_turns",
    "lines",
    "measure",
    "measure_memory",
    "measure_training",
    "memory_table",
    "peak_bytes",
    "target_table",
    "targets",
    "training_fits",
    "training_numbers",
    "training_table",
]
