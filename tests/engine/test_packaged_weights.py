"""The trained models that come along: what their page says of them, and what they predict."""

import hashlib
import re

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import divdr
from divdr import verbs
from divdr.engine.compare import ModelTimes, time_models, times_table
from divdr.packaged_configs import find_file, packaged_weights


@pytest.fixture
def page(repository):
    return (repository / "docs/guide/model_zoo.md").read_text()


def test_their_page_names_each_with_size_and_hash(page):
    row = r"^\| `(\w+)` \|.* \| ([\d.]+) MB, `([0-9a-f]{16})…` \|$"
    said = {name: (float(size), digest) for name, size, digest in re.findall(row, page, re.M)}
    found = {}
    for name, folder in packaged_weights().items():
        content = (folder / "model_final.pth").read_bytes()
        found[name] = round(len(content) / 1e6, 2), hashlib.sha256(content).hexdigest()[:16]
    assert said == found


def test_digits_are_told_apart_as_the_page_says(page):
    (said,) = re.findall(r"^\| `digits_coe` \|.* \| ([\d.]+) % \|", page, re.M)
    data = load_digits()
    pixels = np.round(data.images[1347:] * (255 / 16)).astype(np.uint8)
    predictor = divdr.Predictor.from_files("digits_coe")
    scores = torch.stack([predictor(image)["scores"] for image in pixels])
    hits = (scores.argmax(1).numpy() == data.target[1347:]).mean()
    assert f"{100 * hits:.2f}" == said
    model = divdr.create_model("classification/digits_coe", weights="digits_coe")
    own = predictor.model.state_dict()
    assert all(value.equal(own[name]) for name, value in model.state_dict().items())


def test_enlarged_image_files_have_a_digit(tmp_path, capsys):
    data = load_digits()
    names = []
    for number in range(1347, 1357):
        image = Image.fromarray(np.uint8(data.images[number] * (255 / 16)))
        names.append(str(tmp_path / f"{data.target[number]}_{number}.png"))
        image.resize((64, 64), Image.Resampling.BICUBIC).convert("RGB").save(names[-1])
    words = ["predict", "--weights", "digits_coe", "--output", str(tmp_path / "seen"), *names]
    assert verbs.main(words) == 0
    said = capsys.readouterr()
    found = re.findall(r"(\d)_\d+\.png: class (\d)", said.out + said.err)
    assert len(found) == 10
    assert sum(one == other for one, other in found) >= 8


def test_the_demo_s_models_find_their_classes_in_a_picture():
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    for name in ("demo_dr", "demo_divdr"):
        predictor = divdr.Predictor.from_files(name)
        output = predictor(picture)
        assert output["sem_seg"].shape == (len(predictor.metadata.stuff_classes), 64, 96)
        assert output["sem_seg"].isfinite().all()
        assert predictor.expert(output) in range(3)


def test_a_route_that_comes_along_is_found_from_anywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    predictor = divdr.Predictor.from_files("streets_route")
    pictures = np.random.default_rng(0).integers(0, 256, (2, 128, 256, 3), np.uint8)
    first, second = (predictor(picture)["routing"] for picture in pictures)
    # All images cost the same; gates weigh what runs by image.
    assert first.real_cost.item() == second.real_cost.item() < 0.11e9
    assert (first.activations > 0).equal(second.activations > 0)
    assert not first.activations.equal(second.activations)


def test_a_file_of_ones_own_comes_before_one_that_comes_along(monkeypatch, tmp_path, repository):
    monkeypatch.chdir(tmp_path)
    name = "configs/studies/controls/searched_0.5.json"
    assert find_file(name) == str(repository / name)
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("{}")
    assert find_file(name) == name
    monkeypatch.setenv("PLACE", "here")
    assert find_file("$PLACE/route.json") == "here/route.json"
    assert find_file("configs/none.json") == "configs/none.json"


def test_they_are_timed_on_their_own_images(capsys):
    (row,) = time_models(["digits_coe"], images=3, rounds=2)
    assert (row.name, row.size) == ("digits_coe", (8, 8))
    assert 0 < row.spread[0] <= row.milliseconds <= row.spread[1]
    (_, _, line) = times_table([ModelTimes("a", (2, 3), 1.234, (1.0, 2.0))]).splitlines()
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["a", "2×3", "1.23", "1.00 to 2.00"]
    for words, said in (
        (["digits_coe", "--train"], "--weights goes with --rounds"),
        (["nobody"], "checkpoint nobody does not exist"),
    ):
        with pytest.raises(SystemExit):
            verbs.main(["benchmark", "--weights", *words])
        assert said in capsys.readouterr().err
