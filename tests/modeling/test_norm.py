import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d

from divdr.errors import ConfigError
from divdr.modeling import DynamicRouting, ProjectionNeck
from divdr.modeling import backbone as norm
from divdr.modeling.backbone import norm_factory
from divdr.routing import BatchNorm, SynchronisedBatchNorm, process_count


def test_normalisation_is_over_all_processes_where_there_are_several(monkeypatch):
    assert process_count() == 1
    assert type(norm_factory("")(4)) is BatchNorm
    monkeypatch.setattr(norm.comm, "get_world_size", lambda: 2)
    assert type(norm_factory("")(4)) is SynchronisedBatchNorm
    assert type(norm_factory("BN")(4)) is BatchNorm


@pytest.mark.parametrize("name", ["SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N"])
def test_every_synchronised_kind_bears_cells_without_images(name):
    assert type(norm_factory(name)(4)) is SynchronisedBatchNorm
    neck = ProjectionNeck(
        DynamicRouting(layers=2, scales=2, channels=4, norm=name), ["res2"], 4, name
    )
    kinds = {type(m) for m in neck.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert kinds == {SynchronisedBatchNorm}


def test_other_kinds_are_detectron2s():
    assert type(norm_factory("FrozenBN")(4)) is FrozenBatchNorm2d
    assert norm_factory("GN")(48).num_groups == 16
    with pytest.raises(ConfigError, match="'BNN'"):
        norm_factory("BNN")


def test_kinds_of_batch_norm_read_each_others_weights():
    states = [norm_factory(name)(4).state_dict() for name in ("BN", "SyncBN")]
    assert list(states[0]) == list(states[1]) == list(torch.nn.BatchNorm2d(4).state_dict())
