from dataclasses import replace

import pytest
from small_study import STUDY

from divdr.errors import ConfigError
from divdr.studies import plan
from divdr.studies.reading import list_studies


def test_paired_runs_fork_from_one_trunk(define):
    _, runs = define()
    dr, divdr = runs["DR"][1], runs["DivDR"][1]
    assert dr.trunk.key == divdr.trunk.key != runs["DR"][0].trunk.key
    assert dr.key != divdr.key
    # A quarter of 20 iterations is the trunk's; the schedule stays that of 20.
    assert (dr.trunk.iterations, dr.iterations, divdr.iterations) == (5, 15, 15)
    assert dr.trunk.cfg.SOLVER.MAX_ITER == 20
    assert not dr.trunk.cfg.DATASETS.TEST
    assert (dr.seed, dr.cfg.SEED, dr.trunk.seed) == (1, 1, 1)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("DivDR: {}", "DivDR: {MODEL.ROUTING.CLUSTERING.MARGIN: 2.0}"),
        ("MAX_ITER: 20", "MAX_ITER: 40"),
        ("fork: 0.25", "fork: 0.5"),
        ("fork: 0.25", "fork: 0"),
        ("overrides:", "data: [datasets/make_streetscapes.py]\noverrides:"),
        ("trunk: {", "trunk: {SOLVER.BASE_LR: 0.1, "),
    ],
)
def test_a_run_is_another_when_its_definition_is(define, old, new):
    _, before = define()
    text = STUDY.replace("pairs: [[DR, DivDR]]\n", "").replace(old, new)
    _, after = define(text)
    assert before["DivDR"][0].key != after["DivDR"][0].key


def test_a_run_is_the_same_in_another_study_under_another_name(define):
    _, first = define()
    text = STUDY.replace("DR, DivDR", "DR, ours").replace("DivDR:", "ours:")
    _, second = define(text.replace("A study", "Another"), name="other")
    assert first["DivDR"][0].folder == second["ours"][0].folder


def test_a_pair_that_differs_before_the_fork_is_refused(define):
    text = STUDY.replace("DivDR: {}", "DivDR: {MODEL.ROUTING.CLUSTERING.MARGIN: 2.0}")
    with pytest.raises(ConfigError, match=r"before the fork in MODEL.ROUTING.CLUSTERING.MARGIN"):
        define(text)
    define(
        text.replace("WEIGHT: 0.0}\nvar", "WEIGHT: 0.0, MODEL.ROUTING.CLUSTERING.MARGIN: 1.0}\nvar")
    )


def test_fewer_iterations_are_another_run_with_the_fork_at_the_same_share(define):
    _, runs = define(iterations=8)
    assert runs["DR"][0].trunk.iterations == 2
    with pytest.raises(ConfigError, match="forks at iteration 10 of a training of 8"):
        define(STUDY.replace("fork: 0.25", "fork: 10"), iterations=8)


def test_without_a_fork_runs_start_anew(define):
    _, runs = define(STUDY.replace("fork: 0.25", "fork: 0"))
    assert runs["DR"][0].trunk is None
    assert runs["DR"][0].iterations == 20


def test_every_study_of_the_repository_can_be_planned_and_they_share_runs(repository, tmp_path):
    keys = {}
    for study in list_studies(repository):
        runs = plan(replace(study, seeds=(0,)), repository, tmp_path)
        keys[study.name] = {variant: by_seed[0].key for variant, by_seed in runs.items()}
        assert study.minutes > 0
    reference = keys["paper_tables_streetscapes"]
    # One starts otherwise, one has scenes and a network of its own.
    apart = {"ablation_start", "ablation_bank_age"}
    forked = [name for name in keys if name.startswith("ablation_") and name not in apart]
    assert len(forked) == 8
    for name in forked:
        assert keys[name]["DR"] == reference["DR-A"]
        ours = "K = 3" if name == "ablation_experts" else "DivDR"
        assert keys[name][ours] == reference["DivDR-A, K = 3"]
    assert keys["ablation_experts"]["K = 2"] == reference["DivDR-A, K = 2"]
    for name, own in keys.items():
        assert len(set(own.values())) == len(own), f"two variants of {name} are the same"
