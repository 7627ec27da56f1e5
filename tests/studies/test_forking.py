from functools import partial

import pytest
import torch
from small_study import STUDY

from divdr.errors import CheckpointError
from divdr.studies.planning import start_from_trunk

CLUSTERING = "MODEL.ROUTING.CLUSTERING"


@pytest.fixture
def forked(define, bank_of_four):
    """The checkpoint that a variant starts from, given its setting; the trunk's has K = 3."""

    def fork(setting, trunk):
        text = STUDY.replace("DivDR: {}", f"DivDR: {{{CLUSTERING}.{setting}}}")
        text = text.replace("trunk: {", f"trunk: {{{CLUSTERING}.{trunk}, ")
        _, runs = define(text)
        run = runs["DivDR"][0]
        run.trunk.folder.mkdir(parents=True)
        content = {
            "model": {"weight": torch.arange(3.0)},
            "trainer": {"iteration": 4},
            "iteration": 4,
            "routing": {"steps": 5, "experts": bank_of_four.state_dict()},
        }
        torch.save(content, run.trunk.folder / "model_final.pth")
        (run.trunk.folder / "metrics.json").write_text('{"iteration": 4}\n')
        start_from_trunk(run)
        return run, torch.load(run.folder / "model_0000004.pth")

    return fork


def test_everything_goes_along(forked, bank_of_four):
    run, content = forked("WEIGHT: 0.3", "NUM_EXPERTS: 3")
    assert content["model"]["weight"].tolist() == [0, 1, 2]
    assert content["trainer"] == {"iteration": 4}
    torch.testing.assert_close(content["routing"]["experts"]["centres"], bank_of_four.centres)
    assert (run.folder / "last_checkpoint").read_text() == "model_0000004.pth"
    assert (run.folder / "metrics.json").read_text() == '{"iteration": 4}\n'


def test_another_number_of_experts_clusters_the_same_bank(forked):
    _, content = forked("NUM_EXPERTS: 2", "NUM_EXPERTS: 3")
    experts = content["routing"]["experts"]
    assert experts["num_experts"] == 2
    centres = sorted(experts["centres"].tolist())  # means of the two close pairs
    assert centres == [pytest.approx([0.0, 0.1], abs=1e-3), pytest.approx([1.0, 0.9], abs=1e-3)]


def test_a_trunk_without_a_bank_hands_on_none(forked, bank_of_four):
    bank_of_four.state_dict = partial(bank_of_four.state_dict, bank=False)
    _, content = forked("NUM_EXPERTS: 2", "NUM_EXPERTS: 3")
    experts = content["routing"]["experts"]
    assert experts["num_experts"] == 2
    assert experts["bank"]["keys"] == []
    assert experts["centres"] is None


def test_other_values_start_with_an_empty_bank(forked, bank_of_four):
    _, content = forked('GATES: "before"', 'GATES: "after"')
    experts = content["routing"]["experts"]
    assert experts["centres"] is None
    bank_of_four.load_state_dict({**experts})
    assert len(bank_of_four.bank) == 0


def test_a_run_that_has_begun_is_left_alone(forked):
    run, _ = forked("WEIGHT: 0.3", "NUM_EXPERTS: 3")
    (run.folder / "last_checkpoint").write_text("model_0000009.pth")
    (run.folder / "model_0000004.pth").unlink()
    start_from_trunk(run)
    assert not (run.folder / "model_0000004.pth").exists()


def test_a_damaged_trunk_is_reported(define):
    _, runs = define()
    with pytest.raises(CheckpointError, match="does not exist"):
        start_from_trunk(runs["DR"][0])
