"""Training: trainer, hooks, checkpointer and configuration from the command line."""

from ..command_line import one_sentence, report_errors
from .calibration import CalibrationHook, calibrate_cost
from .checkpointer import RoutingCheckpointer, load_for_evaluation
from .hooks import (
    ClusteringHook,
    CostTargetHook,
    DropPathHook,
    FixRouteHook,
    FreezeGatesHook,
    SeedHook,
)
from .own_data import fit_to_data
from .partition_hook import BoxPartitionHook
from .precise_bn import PreciseBNHook, update_precise_bn
from .predictor import Predictor, create_model
from .setup import check_config, load_config
from .solver import build_lr_scheduler, build_optimizer
from .stage_hook import StageHook
from .trainer import Trainer

__all__ = [
    "BoxPartitionHook",
    "CalibrationHook",
    "ClusteringHook",
    "CostTargetHook",
    "DropPathHook",
    "FixRouteHook",
    "FreezeGatesHook",
    "PreciseBNHook",
    "Predictor",
    "RoutingCheckpointer",
    "SeedHook",
    "StageHook",
    "Trainer",
    "build_lr_scheduler",
    "build_optimizer",
    "calibrate_cost",
    "check_config",
    "create_model",
    "fit_to_data",
    "load_config",
    "load_for_evaluation",
    "one_sentence",
    "report_errors",
    "update_precise_bn",
]
