#!/usr/bin/env python
"""``divdr train``, with Detectron2's command line.

    python tools/train_net.py --config-file configs/divdr_cityscapes.yaml --num-gpus 8
    python tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth

Under ``torchrun`` each process is one of the run's; ``--num-gpus`` is then left out.
"""

import sys

import _environment  # noqa: F401

from divdr.verbs import TRAIN

if __name__ == "__main__":
    sys.exit(TRAIN.main())
