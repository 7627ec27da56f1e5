"""A small study, and a stand-in for its trainings."""

STUDY = """
title: "A study"
minutes: 1
config: "configs/demo/base.yaml"
overrides: {SOLVER.MAX_ITER: 20}
seeds: [0, 1]
fork: 0.25
trunk: {MODEL.ROUTING.CLUSTERING.WEIGHT: 0.0}
variants:
  DR: {MODEL.ROUTING.CLUSTERING.WEIGHT: 0.0}
  DivDR: {}
pairs: [[DR, DivDR]]
metrics:
  sem_seg.IoU: {name: mIoU, unit: "%"}
  routing.inter_refit: {name: "inter (refit)", digits: 3}
"""

# In place of tools/train_net.py: results follow from the configuration.
TRAINING = """
import json, os, shutil, sys, time, yaml
with open(sys.argv[sys.argv.index("--config-file") + 1]) as file:
    cfg = yaml.safe_load(file)
weight, folder = cfg["MODEL"]["ROUTING"]["CLUSTERING"]["WEIGHT"], cfg["OUTPUT_DIR"]
with open(os.environ["STUDY_LOG"], "a") as file:
    file.write(f"{os.path.basename(folder)}\\n")
time.sleep(float(os.environ.get("STUDY_SECONDS", 0)))
if weight == 0.5:
    sys.exit("this training cannot work")
shutil.copyfile(os.environ["STUDY_WEIGHTS"], folder + "/model_final.pth")
if not cfg["SOLVER"]["STOP_ITER"]:
    os.makedirs(folder + "/inference", exist_ok=True)
    results = {"sem_seg": {"IoU": 10 * weight + cfg["SEED"]}, "routing": {"inter_refit": weight}}
    with open(folder + "/inference/results.json", "w") as file:
        json.dump({"cityscapes_fine_sem_seg_val": results}, file)
"""


def score(folder):
    """How many results a run's folder holds."""
    return {"files": len(list((folder / "inference").iterdir()))}
