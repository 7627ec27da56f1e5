import torch

from divdr.engine import Trainer, load_config


def test_a_run_that_stopped_goes_on_as_if_it_had_not(
    repository, scenes, overrides, names_under, tmp_path
):
    def trained(name, stop):
        options = ["OUTPUT_DIR", str(tmp_path / name), "SOLVER.STOP_ITER", str(stop)]
        quiet = [] if not stop else ["DATASETS.TEST", "()", "TEST.PRECISE_BN.ENABLED", "False"]
        cfg = load_config(
            str(repository / "configs/demo/divdr.yaml"), [*overrides, *options, *quiet]
        )
        trainer = Trainer(cfg)
        trainer.resume_or_load()
        trainer.train()
        return torch.load(tmp_path / name / "model_final.pth")

    with names_under(scenes):
        half = trained("stopped", 5)
        assert half["iteration"] == 4
        assert not (tmp_path / "stopped" / "inference").exists()
        resumed, straight = trained("stopped", 0), trained("straight", 0)
    assert resumed["iteration"] == straight["iteration"] == 9
    for name, value in straight["model"].items():
        assert torch.equal(resumed["model"][name], value), name
