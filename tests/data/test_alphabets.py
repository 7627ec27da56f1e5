"""Alphabets as tasks: Omniglot's layout, drawn glyphs in it, and the names of both."""

import json
from collections import Counter
from itertools import chain

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from divdr.config import get_divdr_config
from divdr.data import build_train_loader, check_datasets, register_alphabets
from divdr.data.classification.alphabets import OMNIGLOT, data_set_name, split_drawings
from divdr.engine import load_config
from divdr.errors import ConfigError, DataError
from drawn.glyphs import SCRIPTS, make_glyphs

FEW = {"scripts": ("Greek", "Lao"), "letters": 3, "workers": 1}


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory):
    """A root with two drawn alphabets of three letters."""
    root = tmp_path_factory.mktemp("drawn")
    make_glyphs(root, **FEW)
    return root


@pytest.fixture
def named(glyphs, names_under):
    with names_under(glyphs):
        register_alphabets(glyphs)
        yield glyphs


def test_drawings_are_omniglot_s_kind_of_file(glyphs):
    folders = sorted(p.relative_to(glyphs / "glyphs") for p in (glyphs / "glyphs").rglob("c*/"))
    assert [str(f) for f in folders[:3]] == [f"Greek/character0{n}" for n in (1, 2, 3)]
    files = sorted((glyphs / "glyphs/Lao/character02").iterdir())
    assert [f.name for f in files] == [f"0005_{n:02d}.png" for n in range(1, 21)]
    drawings = [Image.open(f) for f in files]
    assert {(d.size, d.mode) for d in drawings} == {((105, 105), "1")}
    ink = [(~np.asarray(d)).mean() for d in drawings]
    assert min(ink) > 0.01
    assert max(ink) < 0.4  # black on white
    assert len({np.asarray(d).tobytes() for d in drawings}) == 20


def test_a_letter_looks_like_itself_in_the_font(glyphs):
    """The mean of its drawings is nearer to the printed letter than to the others."""
    letters = json.loads((glyphs / "glyphs/glyphs.json").read_text())["alphabets"]["Greek"]
    assert letters == "ΑΒΓ"
    printed = []
    for letter in letters:
        face = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", 90)
        picture = Image.new("L", (105, 105))
        ImageDraw.Draw(picture).text((52, 52), letter, fill=1, font=face, anchor="mm")
        printed.append(np.asarray(picture, float).ravel())
    for number in range(3):
        files = (glyphs / f"glyphs/Greek/character0{number + 1}").iterdir()
        mean = np.mean([~np.asarray(Image.open(f)) for f in files], axis=0).ravel()
        alike = [np.corrcoef(mean, other)[0, 1] for other in printed]
        assert np.argmax(alike) == number


def test_the_same_seed_draws_the_same_whatever_else_is_drawn(glyphs, tmp_path):
    make_glyphs(tmp_path / "one", scripts=("Lao",), letters=2, drawings=4, workers=1)
    make_glyphs(tmp_path / "two", scripts=("Lao",), letters=2, drawings=4, workers=1, seed=1)

    def pixels(root, file):
        return np.asarray(Image.open(root / "glyphs/Lao/character02" / file)).tobytes()

    assert pixels(tmp_path / "one", "0002_03.png") == pixels(glyphs, "0005_03.png")
    assert pixels(tmp_path / "two", "0002_03.png") != pixels(glyphs, "0005_03.png")


def test_scripts_that_no_font_has_are_left_out_in_one_sentence(tmp_path, caplog):
    # In it lies a font, too, that has a frame for every letter of every script.
    fonts = f"{get_data_path()}/fonts/ttf"
    make_glyphs(tmp_path, scripts=("Thai", "Greek"), letters=2, drawings=1, fonts=fonts, workers=1)
    assert [p.name for p in sorted((tmp_path / "glyphs").iterdir())] == ["Greek", "glyphs.json"]
    (told,) = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert told.startswith("Thai is left out: none of ")
    with pytest.raises(DataError, match="has letters of these scripts"):
        make_glyphs(tmp_path, scripts=("Thai",), fonts=fonts, workers=1)


def test_arguments_that_cannot_be(tmp_path):
    with pytest.raises(DataError, match="there is no script 'Klingon'; known are Latin, Greek"):
        make_glyphs(tmp_path, scripts=("Klingon",))
    with pytest.raises(DataError, match="which is no folder"):
        make_glyphs(tmp_path, fonts=str(tmp_path / "none"))
    with pytest.raises(DataError, match="there is no font in"):
        make_glyphs(tmp_path, fonts=str(tmp_path))
    with pytest.raises(ConfigError, match="letters must be at least 1, not 0"):
        make_glyphs(tmp_path, letters=0)
    (tmp_path / "glyphs/Latin").mkdir(parents=True)
    with pytest.raises(DataError, match="holds files that this generator did not make"):
        make_glyphs(tmp_path, **FEW)


def test_twenty_scripts_share_no_letter():
    assert len(SCRIPTS) == 20
    letters = [letter for script in SCRIPTS for letter in script.letters()]
    assert len(letters) == len(set(letters))
    assert min(len(script.letters()) for script in SCRIPTS) >= 20


@given(st.integers(3, 40), st.text("abc/", max_size=5))
def test_every_drawing_is_in_one_split(count, character):
    names = [f"{n:03d}.png" for n in range(count)]
    found = split_drawings(names[::-1], character)
    assert sorted(chain.from_iterable(found.values())) == names
    assert found == split_drawings(names, character)
    if count == 20:
        assert [len(part) for part in found.values()] == [10, 4, 6]


def test_each_alphabet_is_a_task_of_three_data_sets(named):
    records = {s: DatasetCatalog.get(f"glyphs_greek_{s}") for s in ("train", "val", "test")}
    assert {s: len(r) for s, r in records.items()} == {"train": 30, "val": 12, "test": 18}
    assert Counter(r["label"] for r in records["test"]) == {0: 6, 1: 6, 2: 6}
    files = [record["file_name"] for part in records.values() for record in part]
    assert len(set(files)) == 60
    assert all(f"character0{r['label'] + 1}/" in r["file_name"] for r in records["train"])
    metadata = MetadataCatalog.get("glyphs_greek_train")
    assert metadata.task == MetadataCatalog.get("glyphs_greek_test").task == "glyphs/Greek"
    assert metadata.classes == ["character01", "character02", "character03"]


def test_omniglot_s_names_exist_without_it_and_say_what_is_missing(named):
    assert len(OMNIGLOT) == 50
    assert sum(OMNIGLOT.values()) == 1623  # as published
    assert (
        data_set_name("omniglot", "Malay_(Jawi_-_Arabic)", "val")
        == "omniglot_malay_jawi_arabic_val"
    )
    with pytest.raises(DataError, match="omniglot/images_background/Greek, which does not exist"):
        check_datasets(["omniglot_greek_train"])


def test_real_omniglot_drops_in(tmp_path, names_under):
    for place, alphabet in (("background", "Greek"), ("evaluation", "Tibetan")):
        folder = tmp_path / f"omniglot/images_{place}/{alphabet}/character01"
        folder.mkdir(parents=True)
        for number in range(1, 21):
            Image.new("1", (105, 105), 1).save(folder / f"0394_{number:02d}.png")
    with names_under(tmp_path):
        register_alphabets(tmp_path)
        check_datasets(["omniglot_greek_train", "omniglot_tibetan_test"])
        assert len(DatasetCatalog.get("omniglot_tibetan_test")) == 6


def test_the_paper_s_omniglot_has_its_6680_training_images(repository, monkeypatch):
    monkeypatch.chdir(repository)
    cfg = load_config("configs/classification/omniglot_per_example.yaml")
    tasks = list(cfg.MODEL.CLASSIFIER.PER_EXAMPLE.TASKS)
    sizes = {data_set_name("omniglot", name, "train"): n for name, n in OMNIGLOT.items()}
    assert tasks == [sizes[name] for name in cfg.DATASETS.TRAIN]
    assert len(set(cfg.DATASETS.TRAIN)) == 20
    assert 10 * sum(tasks) == 6680


def test_a_batch_mixes_tasks_and_each_image_says_which_is_its(named):
    cfg = get_divdr_config()
    cfg.INPUT.DATASET_MAPPER_NAME, cfg.INPUT.FORMAT = "classification", "L"
    cfg.INPUT.RANDOM_FLIP, cfg.MODEL.PIXEL_MEAN = "none", [0.0]
    cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.ASPECT_RATIO_GROUPING = 0, False
    cfg.SOLVER.IMS_PER_BATCH = 32
    cfg.DATASETS.TRAIN = ("glyphs_lao_train", "glyphs_greek_train")
    cfg.MODEL.CLASSIFIER.PER_EXAMPLE.TASKS = [3, 3]
    batch = next(iter(build_train_loader(cfg)))
    alphabets = ["/Lao/", "/Greek/"]
    assert all(alphabets[item["task"]] in item["file_name"] for item in batch)
    assert {item["task"] for item in batch} == {0, 1}
