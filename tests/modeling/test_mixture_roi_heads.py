"""What surrounds a mixture: ROI heads, and the embedding of classes by a box head."""

import pytest
import torch
from boxes import BACKGROUND, LABELS, NAMES, PARTITION, config, flat, sampled
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import build_roi_heads
from detectron2.utils.events import EventStorage
from torch import nn

from divdr.engine import partition_hook as box_partition


def heads(name, **keys):
    cfg = config(name, **keys)
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2"]
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 3
    made = build_roi_heads(cfg, {"p2": ShapeSpec(channels=4, stride=4)})
    if name == "HydraBoxHead":
        made.box_head.classes.set(PARTITION, NAMES)
    return made.train()


@pytest.mark.parametrize("name", ["HydraBoxHead", "CoEBoxHead"])
@pytest.mark.parametrize("replaced", [False, True])
def test_other_heads_train_on_predicted_boxes_where_that_is_set(name, replaced):
    made = heads(name, _TRAIN_ON_PRED_BOXES=replaced)
    with torch.no_grad():  # as predictors start, boxes hardly move
        made.box_predictor.bbox_pred.weight.normal_(std=0.5)
    before, proposals = sampled(), sampled()
    features = {"p2": torch.randn(len(LABELS), 4, 15, 20)}
    with EventStorage(0):
        made._forward_box(features, proposals)
    found = torch.cat([p.proposal_boxes.tensor for p in proposals])
    old = torch.cat([p.proposal_boxes.tensor for p in before])
    if not replaced:
        assert found.equal(old)
        return
    pooled = made.box_pooler([features["p2"]], [p.proposal_boxes for p in before])
    with torch.no_grad(), EventStorage(0):
        prediction = made.box_head.losses(pooled, made.box_predictor, before)[0]
    for row, label in enumerate(flat().tolist()):
        if label == BACKGROUND:
            continue
        deltas = prediction.deltas[row : row + 1, 4 * label : 4 * label + 4]
        moved = made.box_predictor.box2box_transform.apply_deltas(deltas, old[row : row + 1])
        torch.testing.assert_close(found[row], moved[0])
    assert not found.requires_grad


def test_classes_are_embedded_in_evaluation(monkeypatch):
    model = nn.Sequential(nn.BatchNorm1d(2)).train()
    modes = []

    def embeddings(seen, images):
        for values, labels in images:
            modes.append(seen.training)
            yield values, labels

    images = [(torch.tensor([[1.0, 2.0], [5.0, 6.0]]), torch.tensor([0, 1]))] * 2
    images += [(torch.tensor([[4.0, 5.0]]), torch.tensor([0]))]
    monkeypatch.setattr(box_partition, "annotated_images", lambda cfg, rank, count: images)
    monkeypatch.setattr(box_partition, "box_embeddings", embeddings)
    means = box_partition.roi_class_means(config(), model, NAMES[:2])
    assert means.tolist() == [[2.0, 3.0], [5.0, 6.0]]
    assert modes == [False] * 3
    assert model.training
