"""A drawn COCO data set under Detectron2's own names, and settings that make any config small."""

import pytest


@pytest.fixture(scope="session")
def drawn_root(tmp_path_factory):
    """Root folder of drawn COCO images and street scenes."""
    from drawn.shapes_coco import make_shapes_coco
    from drawn.streetscapes import make_streetscapes

    root = tmp_path_factory.mktemp("drawn")
    make_shapes_coco(root, train=12, val=4, size=96, seed=0, workers=1)
    make_streetscapes(root, train=8, val=4, height=64, width=128, seed=0, workers=1)
    return root


@pytest.fixture(scope="module")  # other modules of the session must find the names as they were
def drawn(drawn_root, names_under):
    """The same folder; while a module here runs, Detectron2's names lead there."""
    with names_under(drawn_root):
        yield drawn_root


@pytest.fixture
def small(tmp_path):
    """KEY VALUE pairs over any full-size config: two iterations of a tiny network on a CPU."""
    return {
        "MODEL.DEVICE": "cpu",
        "MODEL.ROUTING.LAYERS": 5,
        "MODEL.ROUTING.SCALES_PER_LAYER": [2, 3, 4, 4, 5],
        "MODEL.ROUTING.CHANNELS": 4,
        "MODEL.ROUTING.BUDGET.START": 0.0,
        "MODEL.ROUTING.BUDGET.RAMP": 0.0,
        "MODEL.ROUTING.CLUSTERING.START": 0.0,
        "MODEL.ROUTING.CLUSTERING.PERIOD": 1,
        "MODEL.ROUTING.CLUSTERING.NUM_EXPERTS": 2,
        "MODEL.FPN.OUT_CHANNELS": 32,
        "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64], [128]],
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 100,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": 100,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 50,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 50,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
        "MODEL.ROI_MASK_HEAD.FC_DIM": 32,
        "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": (16,),
        "MODEL.RETINANET.NUM_CONVS": 1,
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
        "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": 16,
        "MODEL.SEM_SEG_HEAD.HEAD_CHANNELS": 16,
        "MODEL.INS_EMBED_HEAD.ASPP_CHANNELS": 16,
        "MODEL.INS_EMBED_HEAD.CONVS_DIM": 16,
        "DATALOADER.NUM_WORKERS": 0,
        "INPUT.MIN_SIZE_TRAIN": (96,),
        "INPUT.MAX_SIZE_TRAIN": 160,
        "INPUT.MIN_SIZE_TEST": 96,
        "INPUT.MAX_SIZE_TEST": 160,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 2,
        "SOLVER.STEPS": (),
        "SOLVER.WARMUP_ITERS": 0,
        "TEST.EVAL_PERIOD": 0,
        "TEST.PRECISE_BN.NUM_ITER": 1,
        "OUTPUT_DIR": str(tmp_path),
    }
