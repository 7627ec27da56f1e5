"""Whatever is in a weight file, the right weights come out of it or one sentence."""

import pytest
from fuzz.checkpoints import Case, cases, check_one
from hypothesis import HealthCheck, given, settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)
@given(case=cases())
def test_a_file_gives_its_weights_or_a_sentence(case, folder):
    check_one(case, folder)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_sound_files_of_every_format_are_read(form, folder):
    sound = Case(form, ("state_dict", "ema"), "model.module.", {"epoch": 3}, ("none",))
    assert check_one(sound, folder) == "read"


@pytest.mark.parametrize("place", [0.2, 0.4, 0.5, 0.6, 0.7])
def test_a_flipped_bit_anywhere_among_the_numbers_is_noticed(place, folder):
    flipped = Case("zip", ("model",), "", {}, ("flip", ((place, 6),)))
    check_one(flipped, folder)
