"""Detectron2's default trainer, with routing losses, clustering and exact resumption."""

from __future__ import annotations

import json
import logging
import os
import re
import weakref
from collections import OrderedDict
from functools import cached_property, partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import (
    DefaultTrainer,
    HookBase,
    TrainerBase,
    hooks,
)
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..checkpoint import write_text_atomically
from ..command_line import one_sentence
from ..data import (
    build_bank_loader,
    build_test_loader,
    build_train_loader,
    check_data,
    read_once,
    seed_everything,
)
from ..errors import ConfigError, DivdrError
from ..evaluation import (
    augmented,
    build_cost_evaluator,
    build_head_cost_evaluator,
    build_mixture_evaluator,
    build_task_evaluator,
    check_evaluators,
    summary_table,
)
from ..modeling import (
    attach_expert_balance_from_config,
    attach_routing_from_config,
    attached_experts,
    attached_routing,
    freeze_around_mixtures,
    image_keys,
    periods_from_config,
    unwrap,
)
from ..routing import DynamicRoutingNetwork, to_iterations
from ..settings import ExplorationSettings
from .about import About
from .calibration import CalibrationHook
from .checkpointer import RoutingCheckpointer
from .class_weights import balance_classes
from .console import ForecastHook, screen, training_line, with_progress
from .exploration import ExplorationHook
from .finite import LossCheck, MetricsFile, plain_numbers
from .hooks import (
    ClusteringHook,
    CostTargetHook,
    DropPathHook,
    FixRouteHook,
    FreezeGatesHook,
    SeedHook,
    refill_bank,
)
from .own_data import fitted_if_asked
from .partition_hook import BoxPartitionHook, PartitionHook
from .precise_bn import (
    CommonBNHook,
    PreciseBNHook,
    precise_bn_layers,
    warn_of_small_batches,
)
from .routing_watch import RoutingWatchHook
from .run_facts import noting_facts
from .settings_check import check_config
from .setup import first_on_machine, make_output_folder, on_available_device, together
from .solver import (
    advance,
    build_lr_scheduler,
    build_optimizer,
    loss_check_period,
    with_restarts,
)
from .stage_hook import StageHook, first_iteration, last_iteration, stage_starts
from .training_loop import FULL, LossHook, TrainingLoop
from .wandb_writer import WandbWriter, installed_wandb
from .weight_average import (
    InAverageHook,
    WeightAverage,
    WeightAverageHook,
    average_config,
    beside,
)

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains any Detectron2 model from a config; one with a routed backbone gets routing losses,
    the activation bank and clustering.

    Args:
        cfg: Detectron2's configuration with divdr's keys.

    Raises:
        DivdrError: a setting or the data cannot be used; the message says which and why.
    """

    cfg: CfgNode
    _wandb: WandbWriter | None = None

    def __init__(self, cfg: CfgNode) -> None:
        # DefaultTrainer's own constructor can wrap models for several processes on GPUs alone.
        TrainerBase.__init__(self)
        check_config(cfg)
        if cfg.MODEL.ROUTING.DIAL >= 0 or cfg.MODEL.ROUTING.GATE_THRESHOLD > 0:
            raise ConfigError(
                "MODEL.ROUTING.DIAL and GATE_THRESHOLD set the cost of a trained model: train "
                "without them"
            )
        cfg = on_available_device(fitted_if_asked(cfg))
        for name in ("detectron2", "divdr"):
            if not logging.getLogger(name).isEnabledFor(logging.INFO):
                setup_logger(name=name)
        with read_once([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]):
            together(check_run_data, cfg)
            together(make_output_folder, cfg.OUTPUT_DIR)
            if cfg.WANDB.ENABLED:
                together(installed_wandb)
            if not cfg.DATASETS.TEST:
                logger.warning("DATASETS.TEST is empty: nothing will be evaluated")
            self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed() % 2**31
            if cfg.SEED >= 0:  # the start weights, also where nobody called default_setup
                seed_everything(self.seed, 0)
            self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
            model = self.build_model(cfg)
            balance_classes(cfg, model)
            optimizer = self.build_optimizer(cfg, model)
            loader = together(self.build_train_loader, cfg)
        wrapped = _distributed(model)
        amp, period = cfg.SOLVER.AMP, loss_check_period(cfg)
        dtype = amp.DTYPE if amp.ENABLED else FULL
        images, parts = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE
        warn_of_small_batches(model, images, parts, comm.get_world_size())
        self._trainer = TrainingLoop(wrapped, loader, optimizer, dtype, period, parts)
        whole = cfg.SOLVER.MAX_ITER
        restarting = with_restarts(cfg, stage_starts(model, whole))
        self.scheduler = self.build_lr_scheduler(restarting, optimizer)
        self.start_iter = 0
        #: Whether the run goes on from a checkpoint of its own.
        self.resumed = False
        self.max_iter = min(cfg.SOLVER.STOP_ITER or whole, last_iteration(model, whole))
        self._check_experts()
        #: Of the weights; None without ``SOLVER.EMA``.
        self.average = WeightAverage.from_config(cfg, model)
        self.checkpointer = self._build_checkpointer()
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model of the config, with losses of routing and of experts attached."""
        cfg = on_available_device(cfg)
        model = build_model(cfg)
        attach_routing_from_config(model, cfg)
        attach_expert_balance_from_config(model, cfg)
        freeze_around_mixtures(model)
        LossCheck.attach(model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """See ``divdr.engine.solver``."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(
        cls, cfg: CfgNode, optimizer: torch.optim.Optimizer
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """See ``divdr.engine.solver``."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> torch.utils.data.DataLoader:
        """See ``divdr.data.build_train_loader``."""
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> torch.utils.data.DataLoader:
        """See ``divdr.data.build_test_loader``; on a terminal it shows how far it is."""
        return with_progress(build_test_loader(cfg, dataset_name), dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """The evaluator that suits the data set; :meth:`test` adds that of the cost."""
        folder = os.path.join(cfg.OUTPUT_DIR, "inference")
        if len(cfg.DATASETS.TEST) > 1:  # the files of several have the same names
            folder = os.path.join(folder, dataset_name)
        return build_task_evaluator(dataset_name, folder, cfg)

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks, and those of divdr at the places where they belong."""
        cfg = self.cfg
        plain = cfg.clone()
        plain.defrost()
        plain.TEST.PRECISE_BN.ENABLED = False  # ours knows of cells that no image reaches
        self.cfg = plain
        built = super().build_hooks()
        self.cfg = cfg

        # Everything that changes weights or centres stands before the checkpointer.
        later = (hooks.PeriodicCheckpointer, hooks.EvalHook)
        first = next((i for i, h in enumerate(built) if isinstance(h, later)), len(built))
        built[first:first] = self._own_hooks()
        if self.average is not None:
            evaluate = hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._test_both)
            built = [evaluate if isinstance(h, hooks.EvalHook) else h for h in built]
        if screen() is not None:  # of the main process
            line = hooks.PeriodicWriter(training_line(self.max_iter), period=1)
            # The training's line ends before that of its last evaluation begins.
            at = next((i for i, h in enumerate(built) if isinstance(h, hooks.EvalHook)), len(built))
            built[at:at] = [ForecastHook(), line]
        return [hook for hook in built if hook is not None]

    def _test_both(self) -> OrderedDict:
        """Evaluate the model and the average of its weights, which are one table."""
        assert self.average is not None
        results = self._tested(self.cfg, self.model)
        with self.average.in_model():
            averaged = self._tested(average_config(self.cfg), self.model)
        self._last_eval_results = beside(results, averaged, self.cfg.DATASETS.TEST)
        self._report(self.cfg, self._last_eval_results)
        return self._last_eval_results

    def build_writers(self) -> list[EventWriter]:
        """Detectron2's, of which ``metrics.json`` has null where a figure is not a number."""
        writers: list[EventWriter] = []
        for writer in super().build_writers():
            if isinstance(writer, JSONWriter):
                writer.close()
                writer = MetricsFile(os.path.join(self.cfg.OUTPUT_DIR, "metrics.json"))
            writers.append(writer)
        if self.cfg.WANDB.ENABLED:
            self._wandb = WandbWriter(self.cfg)
            writers.append(self._wandb)
        return writers

    def _start_wandb(self) -> None:
        if self._wandb is not None:  # of the main process
            self._wandb.start(self.resumed)

    def _build_checkpointer(self) -> RoutingCheckpointer:
        routing = attached_routing(self.model)
        checkpointables: dict[str, Any] = {} if routing is None else {"routing": routing}
        experts = attached_experts(self.model)
        if experts is not None:
            checkpointables["experts"] = experts
        if self.average is not None:
            checkpointables["weight_average"] = self.average
        return RoutingCheckpointer(
            self.model,
            self.cfg.OUTPUT_DIR,
            about=[About.of(self.cfg, name) for name in self.cfg.DATASETS.TRAIN],
            trainer=weakref.proxy(self),
            **checkpointables,
        )

    def _own_hooks(self) -> list[HookBase]:
        cfg, model = self.cfg, self.model
        networks = [m for m in model.modules() if isinstance(m, DynamicRoutingNetwork)]
        own: list[HookBase] = [
            LossHook((cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD)),
            PartitionHook(cfg, model),
            BoxPartitionHook(cfg, model),
            SeedHook(self.seed),
            StageHook(cfg, model),
            DropPathHook(networks, cfg.SOLVER.MAX_ITER),
        ]
        exploration = ExplorationSettings.of(cfg.MODEL.ROUTING.EXPLORATION)
        if exploration.noise or exploration.random_until:
            own += [
                ExplorationHook(network, exploration, cfg.SOLVER.MAX_ITER, self.seed)
                for network in networks
            ]
        if self.average is not None:
            own.insert(1, WeightAverageHook(self.average))
        routing = attached_routing(model)
        if routing is not None and routing.experts is not None:
            anew = cfg.MODEL.ROUTING.CLUSTERING.BANK in ("subset", "exact")
            refill = self._refill_bank if anew else None
            periods, saving = periods_from_config(cfg), cfg.SOLVER.CHECKPOINT_PERIOD
            own.append(ClusteringHook(routing.experts, periods, refill, saving))
        if routing is not None:
            own.append(RoutingWatchHook(routing, cfg.OUTPUT_DIR, cfg.SOLVER.MAX_ITER))
        own.append(CommonBNHook((cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD), model))
        if cfg.TEST.PRECISE_BN.ENABLED and precise_bn_layers(model):
            own.append(
                PreciseBNHook(
                    cfg.TEST.EVAL_PERIOD,
                    model,
                    lambda: self._precise_bn_loader,
                    cfg.TEST.PRECISE_BN.NUM_ITER,
                    cfg.SOLVER.MAX_ITER,
                )
            )
        if routing is not None and routing.cost is not None:
            routing.cost.parts = cfg.SOLVER.ACCUMULATE
            own.append(CostTargetHook(routing.cost))
            fixed = to_iterations(cfg.MODEL.ROUTING.BUDGET.FIX_ROUTE, cfg.SOLVER.MAX_ITER)
            if fixed:
                own.append(FixRouteHook(routing, fixed))
            frozen = to_iterations(cfg.MODEL.ROUTING.BUDGET.FREEZE_GATES, cfg.SOLVER.MAX_ITER)
            if frozen:
                own.append(FreezeGatesHook(routing.backbone.network, frozen))
            images = cfg.MODEL.ROUTING.BUDGET.TARGET_CALIBRATION
            if images > 0:
                loader = partial(build_test_loader, cfg, cfg.DATASETS.TRAIN, images)
                own.append(CalibrationHook(model, routing, loader, cfg.SOLVER.MAX_ITER))
        if self.average is not None:
            kinds = (CommonBNHook, PreciseBNHook, CalibrationHook)
            prepare = [hook for hook in own if isinstance(hook, kinds)]
            moments = (cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD)
            own.append(InAverageHook(self.average, prepare, moments, self.checkpointer))
        return own

    @cached_property
    def _precise_bn_loader(self) -> torch.utils.data.DataLoader:
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0
        return build_train_loader(cfg, seed=self.seed + 1)

    def _refill_bank(self) -> None:
        routing = attached_routing(self.model)
        assert routing is not None
        assert routing.experts is not None
        backbone = routing.backbone

        def values() -> torch.Tensor:
            assert backbone.routing is not None
            return routing.clustered_values(backbone.routing)

        model, loader = unwrap(self.model), self._bank_loader
        refill_bank(model, backbone, routing.experts, loader, values, image_keys, self.iter)

    @cached_property
    def _bank_loader(self) -> torch.utils.data.DataLoader:
        settings = self.cfg.MODEL.ROUTING.CLUSTERING
        images = settings.BANK_IMAGES if settings.BANK == "subset" else None
        return build_bank_loader(self.cfg, images, self.seed)

    def _check_experts(self) -> None:
        routing = attached_routing(self.model)
        if routing is None or routing.experts is None:
            return
        images = len(self.data_loader.dataset)
        if routing.experts.num_experts > images:
            raise ConfigError(
                f"MODEL.ROUTING.CLUSTERING.NUM_EXPERTS is {routing.experts.num_experts}, but the "
                f"training set holds {images} images"
            )

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue the run in ``OUTPUT_DIR`` where its last checkpoint stands, or load weights.

        Raises:
            CheckpointError: the checkpoint is damaged or belongs to another model.
        """
        super().resume_or_load(resume)
        self.resumed = resume and self.checkpointer.has_checkpoint()
        if not self.resumed:
            self.start_iter = first_iteration(self.model, self.cfg.SOLVER.MAX_ITER)
            advance(self.scheduler, self.start_iter)
        routing = attached_routing(self.model)
        if routing is not None and self.start_iter < self.max_iter:
            # Gates decide as they are trained, also of what was once cheaper in evaluation.
            routing.backbone.set_gate_threshold(0.0)
            if not self.resumed:
                routing.backbone.fix_route(None)
        keys = getattr(self.data_loader.dataset, "keys", None)  # somebody's own loader has none
        if routing is not None and keys is not None:
            routing.keep_images(keys)
        self.data_loader.batch_sampler.start = self.start_iter
        if self.start_iter:
            how = "Continuing" if self.resumed else "Beginning"
            logger.info("%s at iteration %d", how, self.start_iter)

    def train(self) -> OrderedDict | None:
        """Train, evaluate, and return the results, if any.

        Raises:
            DivdrError: what stopped it; its sentence is in the log, without a traceback.
            KeyboardInterrupt: somebody did; it says where, and where ``--resume`` goes on.
        """
        if comm.is_main_process() and self.cfg.OUTPUT_DIR:
            # Detectron2 writes it from the command line alone; predicting needs it afterwards.
            path = os.path.join(self.cfg.OUTPUT_DIR, "config.yaml")
            write_text_atomically(path, self.cfg.dump())
        together(self._start_wandb)
        log = logging.getLogger(TrainerBase.__module__)
        log.addFilter(_in_one_line)
        folder, device = self.cfg.OUTPUT_DIR, self.cfg.MODEL.DEVICE
        try:
            with noting_facts(folder, device, resumed=self.resumed):
                return super().train()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self._stopped()) from None
        finally:
            log.removeFilter(_in_one_line)

    def _stopped(self) -> str:
        name = os.path.basename(self.checkpointer.get_checkpoint_file())
        saved = re.fullmatch(r"model_(\d+)\.pth", name)
        if saved:
            rest = f"--resume goes on from {int(saved[1]) + 1}"
        else:
            rest = f"--resume goes on from {name}" if name else "no checkpoint is written yet"
        return f"stopped at iteration {getattr(self, 'iter', self.start_iter)}; {rest}"

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None
    ) -> OrderedDict:
        """Evaluate on ``DATASETS.TEST``, cost (and routing, for a routed model) included; print one
        table and write ``inference/results.json``. Without a test data set nothing happens.
        """
        results = cls._tested(cfg, model, evaluators)
        cls._report(cfg, results)
        return results

    @classmethod
    def _tested(
        cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None
    ) -> OrderedDict:
        if not cfg.DATASETS.TEST:
            return OrderedDict()
        if evaluators is None:
            evaluators = []
            for name in cfg.DATASETS.TEST:
                built = [
                    cls.build_evaluator(cfg, name),
                    build_cost_evaluator(cfg, name, model),
                    build_head_cost_evaluator(name, model),
                    build_mixture_evaluator(cfg, model),
                ]
                evaluators.append(DatasetEvaluators([e for e in built if e is not None]))
        return super().test(*augmented(cfg, model), evaluators)

    @classmethod
    def _report(cls, cfg: CfgNode, results: OrderedDict) -> None:
        if cfg.DATASETS.TEST and comm.is_main_process():
            names = cfg.DATASETS.TEST
            by_dataset = {names[0]: results} if len(names) == 1 else dict(results)
            folder = os.path.join(cfg.OUTPUT_DIR, "inference")
            os.makedirs(folder, exist_ok=True)
            # NaN, the IoU of a class that no pixel has, is no JSON.
            text = json.dumps(plain_numbers(by_dataset), indent=2, allow_nan=False)
            write_text_atomically(os.path.join(folder, "results.json"), text)
            logger.info("Results\n%s", summary_table(by_dataset))


def check_run_data(cfg: CfgNode, *, training: bool = True) -> None:
    """See that the data of a run suit config and model, on the first process of each machine.

    Args:
        cfg: the whole configuration.
        training: whether ``DATASETS.TRAIN`` will be used.

    Raises:
        DataError: see ``divdr.data.check_data``.
        ConfigError: see ``divdr.evaluation.check_evaluators``.
    """
    if first_on_machine():  # the others see the same files
        check_data(cfg, training=training)
    check_evaluators(cfg.DATASETS.TEST)


def _in_one_line(record: logging.LogRecord) -> bool:
    """Filter of Detectron2's log: of errors meant for users it notes the sentence alone."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, DivdrError):
        record.exc_info = None
        record.msg, record.args = "Stopped: %s", (one_sentence(error),)
    return True


def _distributed(model: nn.Module) -> nn.Module:
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).is_cuda
    if not on_gpu:
        for name, module in model.named_modules():
            if isinstance(module, nn.SyncBatchNorm):
                raise ConfigError(
                    f"{name} is normalised by Detectron2's SyncBN, which works on GPUs alone; set "
                    'that part\'s NORM (MODEL.FPN.NORM, MODEL.RESNETS.NORM, ...) to "BN" or "GN"'
                )
    return DistributedDataParallel(
        model,
        device_ids=[torch.cuda.current_device()] if on_gpu else None,
        broadcast_buffers=False,
        find_unused_parameters=any(
            getattr(m, "leaves_parameters_out", False) for m in model.modules()
        ),
    )
