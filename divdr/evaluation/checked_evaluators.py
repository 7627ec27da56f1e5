"""Detectron2's evaluators of instances and of classes, for the data that they take wrongly, and
without what their libraries print.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any
from unittest import mock

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
    coco_evaluation,
)
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from torch import Tensor

from ..image_files import check_label_map, read_labels
from ..routing import to_host

logger = logging.getLogger(__name__)


class QuietEvaluators(DatasetEvaluators):
    """Evaluators whose libraries print tables and progress: they go to the log file, if there is
    one, and to nobody's screen.
    """

    def evaluate(self) -> dict:
        """The results of all.

        Raises:
            BaseException: what an evaluator raised, after what it printed: cityscapesscripts leaves
                with its reason there alone.
        """
        printed = io.StringIO()
        cityscapes = (CityscapesInstanceEvaluator, CityscapesSemSegEvaluator)
        old = any(isinstance(each, cityscapes) for each in self._evaluators)
        try:
            with (
                _names_of_old_numpy() if old else contextlib.nullcontext(),
                contextlib.redirect_stdout(printed),  # not of loggers: they know the screen itself
            ):
                results = super().evaluate()
        except BaseException:
            print(printed.getvalue(), end="")
            raise
        text = printed.getvalue().strip()
        if text:
            _to_log_files(f"What evaluation printed:\n{text}")
        return results


@contextlib.contextmanager
def _names_of_old_numpy() -> Iterator[None]:
    """What cityscapesscripts 2.3 takes from NumPy, where NumPy has it no longer.

    ``in1d`` is gone since NumPy 2.4, and counts are no Python numbers since 2.3, which its JSON
    files refuse.
    """
    count = np.count_nonzero

    def python_count(*args: Any, **options: Any) -> Any:
        counted = count(*args, **options)
        return int(counted) if np.ndim(counted) == 0 else counted

    with contextlib.ExitStack() as changes:
        if not hasattr(np, "in1d"):
            changes.enter_context(mock.patch.object(np, "in1d", np.isin, create=True))
        if not isinstance(count(np.ones(1)), int):
            changes.enter_context(mock.patch.object(np, "count_nonzero", python_count))
        yield


def _to_log_files(message: str) -> None:
    """Note a message at debug level where it is kept; Detectron2's loggers show debug messages on
    the screen too.
    """
    level = logging.DEBUG
    record = logger.makeRecord(logger.name, level, __file__, 0, message, (), None)
    place: logging.Logger | None = logger
    while place is not None:
        for handler in place.handlers:
            shown = getattr(handler, "stream", None) in (sys.stdout, sys.stderr)
            if not shown and level >= handler.level:
                handler.handle(record)
        place = place.parent if place.propagate else None


class NumberedCOCOEvaluator(COCOEvaluator):
    """Detectron2's evaluator, for files whose annotations are numbered in any way, or of which the
    data set is a part, and for data sets without a file.

    pycocotools notes the id of the annotation that a prediction found as a number, and 0 for none:
    of annotations with the id 0 it counts a match as a miss, and it cannot work with texts.

    Where Detectron2's compiled evaluation is missing, faster-coco-eval takes its place if it is
    installed, with pycocotools' figures, and pycocotools itself otherwise.

    Args:
        dataset_name: name in the catalog.
        options: of Detectron2's evaluator.
    """

    def __init__(self, dataset_name: str, **options: Any) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        without_file = metadata.get("json_file", None) is None
        # The file that Detectron2 writes for one may be of other images, as they were before.
        super().__init__(dataset_name, allow_cached_coco=not without_file, **options)
        if without_file:
            del metadata.json_file  # it is of this run's folder alone
        # Detectron2 turns its own off where its compiled part is missing.
        self._may_be_fast = options.get("use_fast_impl", True)
        self._own_images: list | None = None
        if metadata.get("part_of_file", None):
            self._own_images = [each["image_id"] for each in DatasetCatalog.get(dataset_name)]
        entries = self._coco_api.dataset.get("annotations", [])
        if all(isinstance(entry["id"], int) and entry["id"] > 0 for entry in entries):
            return
        for number, entry in enumerate(entries, 1):
            entry["id"] = number
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints what it does
            self._coco_api.createIndex()

    def evaluate(self, img_ids: list | None = None) -> dict:
        """Figures of the data set's images, or of some of them."""
        images = self._own_images if img_ids is None else img_ids
        if self._use_fast_impl or not self._may_be_fast or not find_spec("faster_coco_eval"):
            return super().evaluate(images)
        with (
            mock.patch.object(self, "_use_fast_impl", True),
            mock.patch.object(coco_evaluation, "COCOeval_opt", _fast_evaluation),
        ):
            return super().evaluate(images)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Note what was found, which crosses from a GPU at once for all images of the batch."""
        found = [output["instances"] for output in outputs if "instances" in output]
        fields = [each for instances in found for each in instances.get_fields().values()]
        tensors = [_data(each) for each in fields]
        moved = iter(to_host([each for each in tensors if each is not None]))
        here = []
        for output in outputs:
            if "instances" in output:
                instances = output["instances"]
                own = Instances(instances.image_size)
                for name, value in instances.get_fields().items():
                    own.set(name, value if _data(value) is None else _with_data(value, next(moved)))
                output = {**output, "instances": own}
            here.append(output)
        super().process(inputs, here)


def _fast_evaluation(truth: COCO, found: COCO, kind: str) -> Any:
    """An evaluation by faster-coco-eval, of what was read by pycocotools.

    Args:
        truth: the annotations.
        found: the predictions.
        kind: "bbox", "segm" or "keypoints".
    """
    import faster_coco_eval

    both = []
    for each in (truth, found):
        own = faster_coco_eval.COCO()
        own.dataset = each.dataset
        own.createIndex()
        both.append(own)
    evaluation = faster_coco_eval.COCOeval_faster(*both, kind)
    evaluation.params.catIds = sorted(truth.getCatIds())  # for joints it takes those with images
    return evaluation


def _data(value: Any) -> Tensor | None:
    """The numbers of a field of instances, if they are one tensor."""
    if isinstance(value, Tensor):
        return value
    return value.tensor if type(value) is Boxes else None


def _with_data(value: Tensor | Boxes, data: Tensor) -> Tensor | Boxes:
    return data if isinstance(value, Tensor) else Boxes(data)


class CheckedSemSegEvaluator(SemSegEvaluator):
    """Detectron2's evaluator of classes, with divdr's reader of labels, each of which is checked.

    Detectron2's own counts labels that are no classes as others, or cannot go on.

    Args:
        dataset_name: name in the catalog.
        folder: takes the predictions.
    """

    def __init__(self, dataset_name: str, folder: str) -> None:
        options: dict[str, Any] = {}
        # Detectron2 0.6 reads labels itself and has no such argument.
        if "sem_seg_loading_fn" in inspect.signature(SemSegEvaluator.__init__).parameters:
            options["sem_seg_loading_fn"] = self._last_labels
        super().__init__(dataset_name, distributed=True, output_dir=folder, **options)
        self._last: np.ndarray = np.zeros((0, 0), np.uint8)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Count what was predicted for the pixels of each class.

        Raises:
            DataError: labels cannot be read, are of another size than their image, or no classes.
        """
        for item, output in zip(inputs, outputs, strict=True):
            path = self.input_file_to_gt_file[item["file_name"]]
            self._last = read_labels(path)
            size = tuple(output["sem_seg"].shape[-2:])
            classes, ignore = self._num_classes, self._ignore_label
            check_label_map(self._last, path, classes=classes, ignore=ignore, size=size)
            super().process([item], [output])

    def _last_labels(self, path: str, dtype: Any = None, **ignored: Any) -> np.ndarray:
        return self._last.astype(dtype)
