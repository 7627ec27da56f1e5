"""Configurations drawn at random: each is taken, or refused in one sentence."""

from hypothesis import HealthCheck, given, settings

from fuzz.configs import Example, check_one, configs


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(example=configs())
def test_any_config_is_taken_or_refused_in_one_sentence(tmp_path_factory, example):
    check_one(example, tmp_path_factory.getbasetemp())


def test_both_happen(tmp_path):
    assert check_one(Example(b"SEED: 3\n", ["SOLVER.BASE_LR", "1"]), tmp_path)
    assert not check_one(Example(b"SEED: {3: 4}\n"), tmp_path)
    assert not check_one(Example(None, ["SOLVER.BASE_LR"]), tmp_path)
