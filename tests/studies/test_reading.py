import pytest
from small_study import STUDY

from divdr.errors import ConfigError
from divdr.studies import find_study, load_study


def read(tmp_path, text):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return load_study(path)


def test_variants_complete_what_they_share(tmp_path):
    study = read(tmp_path, STUDY)
    assert [v.name for v in study.variants] == ["DR", "DivDR"]
    assert study.variant("DR").overrides == {
        "SOLVER.MAX_ITER": 20,
        "MODEL.ROUTING.CLUSTERING.WEIGHT": 0.0,
    }
    assert study.variant("DivDR").config == "configs/demo/base.yaml"
    assert study.metric("sem_seg.IoU").label == "mIoU [%]"


def test_a_base_is_completed(tmp_path):
    (tmp_path / "base.yaml").write_text(STUDY)
    study = read(tmp_path, '_BASE_: "base.yaml"\nvariants:\n  K = 2: {A.B: 2}\nseeds: [7]\n')
    assert [v.name for v in study.variants] == ["DR", "DivDR", "K = 2"]
    assert study.seeds == (7,)


def test_a_variant_may_have_config_and_data_of_its_own(tmp_path):
    own = 'DivDR: {config: "configs/demo/divdr.yaml", data: ["datasets/x.py", "--train", 4]}'
    variant = read(tmp_path, STUDY.replace("DivDR: {}", own)).variant("DivDR")
    assert variant.config == "configs/demo/divdr.yaml"
    assert variant.data == ("datasets/x.py", "--train", "4")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[[DR, DivDR]]", "[[DR, Dr-DR]]", "no variant 'Dr-DR'; it has DR, DivDR"),
        ("DivDR: {}", "DivDR: {}\n  div-dr: {}\n  Div DR: {}", "differ in letters and digits"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "names a seed twice"),
        ("seeds: [0, 1]", "seeds: []", "at least one"),
        ("title:", "titel:", "unknown entry 'titel'"),
        ("minutes: 1\n", "", "minutes"),
        ("DivDR: {}", "DivDR: {overides: 1}", "variant DivDR has an unknown entry 'overides'"),
        ("fork: 0.25", "fork: -1", "cannot be negative"),
        ("name: mIoU,", "", "name"),
        ("pairs:", "pictures: {tradeoff: [routing.real, sem_seg.IoU]}\npairs:", "routing.real"),
        ("pairs:", "pictures: {progress: sem_seg.AP}\npairs:", "sem_seg.AP"),
        ("pairs:", "pictures: {embedding: [DR, X]}\npairs:", "no variant 'X'"),
        ("pairs:", "pictures: {need: [[DR, X]]}\npairs:", "no variant 'X'"),
        ("pairs:", "oracle: [DR, X]\npairs:", "no variant 'X'"),
        ("pairs:", "pictures: {need: [[DR]]}\npairs:", "not enough values"),
        ("pairs:", "pairs: [", "cannot be read as yaml"),
    ],
)
def test_a_wrong_file_is_reported_in_one_sentence(tmp_path, old, new, words):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, STUDY.replace(old, new))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_study_names_the_known(repository):
    with pytest.raises(ConfigError, match=r"no study 'minature'; known are .*miniature"):
        find_study(repository, "minature")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"a:\n\tb: 1\n", r"line 2 .* by spaces, not by tabs"),
        (b"- 1\n", "holds no keys with values but list"),
        (b"_BASE_: nowhere.yaml\n", "cannot be read: .*nowhere"),
        (b"_BASE_: 3\n", "cannot be read"),
    ],
)
def test_files_that_are_no_study(tmp_path, content, message):
    (tmp_path / "own.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"own\.yaml.*{message}"):
        load_study(tmp_path / "own.yaml")
