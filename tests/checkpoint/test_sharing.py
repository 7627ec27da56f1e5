"""Checkpoints to hand on: smaller, and as safetensors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from divdr import verbs
from divdr.checkpoint import read_weights, without_training, write_checkpoint
from divdr.errors import CheckpointError

RUN = {
    "model": {
        "a.weight": torch.linspace(-3, 3, 24).reshape(2, 3, 4),
        "a.bias": torch.tensor([1 / 3, 0.1]),
        "a.count": torch.tensor(7),
    },
    "divdr": {"task": "boxes", "metadata": {"ids": {1: 0, 7: 1}, "classes": ["a", "ä"]}},
    "routing": {
        "steps": 9,
        "experts": {"centres": torch.eye(2), "sigma2": None, "bank": {"rows": torch.ones(9)}},
        "dial": [{"shift": -0.5, "centres": torch.ones(2)}],
    },
    "trainer": {"optimizer": {"state": torch.ones(99)}},
    "iteration": 12,
}


def same(one, other):
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and one.equal(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other and type(one) is type(other)


def test_what_only_training_needs_is_left_out():
    kept = without_training(RUN)
    assert list(kept) == ["model", "divdr", "routing"]
    assert same(kept["model"], RUN["model"])
    assert same(kept["divdr"], RUN["divdr"])
    assert list(kept["routing"]) == ["experts", "dial"]
    assert kept["routing"]["experts"]["bank"] is None
    assert kept["routing"]["experts"]["centres"].equal(torch.eye(2))
    with pytest.raises(CheckpointError, match="no 'model'"):
        without_training({"weights": 1})


def test_matrices_are_halved_and_nothing_else():
    kept = without_training(RUN, half=True)["model"]
    assert [v.dtype for v in kept.values()] == [torch.float16, torch.float32, torch.int64]
    torch.testing.assert_close(
        kept["a.weight"].float(), RUN["model"]["a.weight"], rtol=5e-4, atol=0
    )


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_file_of_either_kind_gives_back_what_went_in(tmp_path, ending):
    kept = without_training(RUN, half=True)
    file = tmp_path / f"model.{ending}"
    write_checkpoint(file, kept)
    assert same(read_weights(file), kept)
    assert [f.name for f in tmp_path.iterdir()] == [file.name]


def test_other_programs_find_weights_under_their_names(tmp_path):
    write_checkpoint(tmp_path / "a.safetensors", without_training(RUN))
    found = load_file(tmp_path / "a.safetensors")
    assert found["a.weight"].equal(RUN["model"]["a.weight"])
    save_file({"b.weight": torch.ones(2)}, tmp_path / "b.safetensors")
    assert same(read_weights(tmp_path / "b.safetensors"), {"model": {"b.weight": torch.ones(2)}})


def test_weights_that_share_memory_are_kept_twice(tmp_path):
    one = torch.ones(3)
    write_checkpoint(tmp_path / "a.safetensors", {"model": {"a": one, "b": one, "c": one[::2]}})
    assert read_weights(tmp_path / "a.safetensors")["model"]["c"].equal(torch.ones(2))


_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-99, 99),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
    st.builds(lambda n: torch.arange(n), st.integers(1, 3)),
)


@settings(max_examples=50, deadline=None)
@given(
    rest=st.recursive(
        _LEAVES,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.one_of(st.text(), st.integers()), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_whatever_stands_beside_the_weights_survives(tmp_path_factory, rest):
    file = tmp_path_factory.mktemp("any") / "a.safetensors"
    content = {"model": {"w": torch.ones(1)}, "divdr": rest}
    write_checkpoint(file, content)
    assert same(read_weights(file), content)


def test_damaged_files_are_told_in_a_sentence(tmp_path):
    file = tmp_path / "a.safetensors"
    write_checkpoint(file, without_training(RUN))
    whole = file.read_bytes()
    for damaged in (b"", b"hello", whole[:50], whole[:-20]):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"a\.safetensors"):
            read_weights(file)
    with pytest.raises(CheckpointError, match="does not fit into safetensors"):
        write_checkpoint(file, {"model": {}, "divdr": object()})


def converted(*words):
    verbs.main(["convert", *map(str, words)])


def test_the_verb_makes_files_of_either_kind_without_a_configuration(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    write_checkpoint(run / "model_final.pth", RUN)
    converted(run, tmp_path / "whole.safetensors")
    assert same(read_weights(tmp_path / "whole.safetensors"), RUN)
    converted(tmp_path / "whole.safetensors", tmp_path / "slim.pth", "--slim")
    assert f"wrote {tmp_path / 'slim.pth'}, 0.00 MB" in capsys.readouterr().out
    assert same(read_weights(tmp_path / "slim.pth"), without_training(RUN))
    converted(run / "model_final.pth", "--half", "--output", tmp_path / "half.safetensors")
    assert same(read_weights(tmp_path / "half.safetensors"), without_training(RUN, half=True))


def test_the_verb_says_what_it_cannot_do(tmp_path, capsys):
    file = tmp_path / "a.pth"
    write_checkpoint(file, RUN)
    write_checkpoint(tmp_path / "other.pth", {"weights": RUN["model"]})
    for words, said in (
        ((file, "b.pth"), "say --slim, --half or another ending"),
        ((file, "b.pth", "--slim", "SEED", "1"), "required: --config-file"),
        ((file, "b.pth", "--slim", "--config-file", "demo/divdr"), "without --config-file"),
        ((file, file, "--slim"), "would replace itself"),
        ((tmp_path / "other.pth", "b.safetensors"), "holds no 'model'"),
        ((tmp_path / "none.pth", "b.safetensors"), "none.pth does not exist"),
        ((file, "--slim"), "name one file to write"),
    ):
        with pytest.raises(SystemExit) as ended:
            converted(*words)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
    assert same(read_weights(file), RUN)
