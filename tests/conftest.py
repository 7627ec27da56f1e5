"""What several test files share."""

import logging
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin import register_all_cityscapes, register_all_coco

torch.set_num_threads(1)  # several test processes share the cores
# Likewise of scikit-learn, whose threads a forked process would wait for in vain.
os.environ["OMP_NUM_THREADS"] = "1"

REPOSITORY = Path(__file__).resolve().parent.parent

# Where Python looks first for what a script of tools/ or datasets/ imports.
sys.path += [str(REPOSITORY / "tools"), str(REPOSITORY / "datasets")]


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the repository."""
    return REPOSITORY


@pytest.fixture(autouse=True)
def _logged():
    """Let caplog see what Detectron2's loggers say: once set up they keep it to themselves."""
    for name in ("detectron2", "divdr"):
        logging.getLogger(name).propagate = True


@pytest.fixture
def training_log(caplog):
    """caplog for tests that train: the first trainer of a process sets up a log of its own, to
    which caplog is deaf, unless there is one."""
    for name in ("detectron2", "divdr"):
        caplog.set_level(logging.INFO, logger=name)
    return caplog


@contextmanager
def _names_under(root):
    before = dict(DatasetCatalog.data), dict(MetadataCatalog.data)
    DatasetCatalog.data.clear()
    MetadataCatalog.data.clear()
    register_all_coco(str(root))
    register_all_cityscapes(str(root))
    yield
    for catalogue, names in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        catalogue.data.clear()
        catalogue.data.update(names)


@pytest.fixture(scope="session")
def names_under():
    """Context in which Detectron2's names of COCO and Cityscapes lead to a folder, and no others
    exist."""
    return _names_under


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(items) -> None:
    # One begun last would have a process to itself for as long as it takes.
    items.sort(key=lambda item: "long" not in item.keywords)
    skip = pytest.mark.skip(reason="needs a CUDA device")
    if not torch.cuda.is_available():
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(skip)
