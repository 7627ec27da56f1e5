import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from sklearn.metrics import adjusted_mutual_info_score
from synthetic_runs import scene, write_metrics, write_run

from divdr.errors import DataError
from divdr.routing.space import RoutingSpace
from divdr.visualization import ClassExample, Example, ExpertChoices, RunData, write_report
from divdr.visualization.examples import RIGHT, WRONG, examples_section

SPACE = RoutingSpace.build(5, 3)
VOID_TAGS = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects tables, pictures and text, and checks that tags close in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.links, self.tables, self.words = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset", "data")]
        if tag == "img":
            self.images.append(attributes)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif self.open and self.open[-1] == "small":
            self.tables[-1][-1][-1] += "|" + data
        if "style" not in self.open:
            self.words.append(data)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("plain", "divdr")):
        write_run(folder / name, space=SPACE, seed=seed, picture_folder=folder / "pictures")
    return [RunData.load(folder / name, name) for name in ("plain", "divdr")]


@pytest.fixture(scope="module")
def characters(runs):
    stems = runs[0].routes_of("toy_val").stems
    known = {stem: stem.split("_")[0] for stem in stems}
    known["city_000"], known["city_003"] = "night", "<b>odd</b>"
    del known["rural_002"]
    return known


@pytest.fixture(scope="module")
def page(runs, characters, tmp_path_factory):
    image, labels = scene(0, 0)
    worse = np.where(np.arange(labels.shape[1]) < 32, 0, labels)
    example = Example("street <1>", image, labels, {"plain": worse, "divdr": labels})
    path = tmp_path_factory.mktemp("page") / "new" / "report.html"
    written = write_report(
        path,
        runs,
        title="Two runs & more",
        dataset_name="toy_val",
        examples=[example],
        characters=characters,
        notes=["A note."],
        class_names=["sky", "road"],
    )
    assert written == path
    assert path.stat().st_size < 6_000_000
    return Page(path.read_text(encoding="utf-8"))


def test_self_contained(page):
    assert page.images
    for link in page.links:
        assert link.startswith(("data:image/png;base64,", "#"))
    # losses, GFLOPs, diversity, examples; and for each run routes, plane, montage
    assert len(page.images) == 4 + 2 * 3
    assert all(image["alt"] for image in page.images)


def test_results_of_each_run_and_their_difference(page, runs):
    header, first, second = page.tables[0]
    assert header[1:] == [
        "mIoU, %",
        "expected GFLOPs",
        "real GFLOPs",
        "open cells, %",
        "inter (experts)",
        "intra (pairs, experts)",
        "intra (to centre, experts)",
        "inter (refit)",
        "intra (pairs, refit)",
        "intra (to centre, refit)",
    ]
    assert first[:2] == ["plain", "51.23"]
    assert second[:2] == ["divdr", "52.23|+1.00"]
    for run, row in zip(runs, (first, second), strict=True):
        number = run.number("toy_val", "routing", "real_gflops")
        spread = run.number("toy_val", "routing", "real_gflops_std")
        assert row[3].startswith(f"{number:.2f} ± {spread:.2f}")
        assert row[4].startswith(f"{100 * run.number('toy_val', 'routing', 'open_cells'):.1f}")
    # Both were written with the same noise.
    assert (first[5], second[5]) == ("1.720", "1.720|±0.000")
    assert (first[8], second[8]) == ("2.910", "2.910|±0.000")
    assert "of a new K-means over the evaluated images, whatever training found" in page.text
    assert "divdr has higher mIoU" in page.text


def test_sentences_say_what_the_curves_do(page, runs):
    for key, name in (
        ("clustering/inter_experts", "inter (experts)"),
        ("clustering/intra_pairs_experts", "intra (pairs, experts)"),
        ("routing/inter_refit", "inter (refit)"),
    ):
        values = runs[0].metrics[key][1]
        verb = "rose" if values[-1] > values[0] else "fell"
        found = re.search(
            rf"plain: from [^:]*{re.escape(name)} {verb} from (\S+) to (\S+)", page.text
        )
        assert float(found[1]) == pytest.approx(values[0], rel=0.01)
        assert float(found[2].strip(",.")) == pytest.approx(values[-1], rel=0.01)


def test_character_table_counts(page, runs, characters):
    routes = runs[0].routes_of("toy_val")
    table = page.tables[2]
    assert table[0] == ["plain", "<b>odd</b>", "city", "night", "rural", "all"]
    # 24 images, 8 an expert. Expert 0 got all of city: one of them became night, one odd. One of
    # expert 2's rural images has no character.
    assert table[1] == ["expert 0", "1|12 %", "6|75 %", "1|12 %", "0|0 %", "8"]
    assert table[2] == ["expert 1", "0|0 %", "0|0 %", "8|100 %", "0|0 %", "8"]
    assert table[3] == ["expert 2", "0|0 %", "0|0 %", "0|0 %", "7|100 %", "7"]
    assert table[4][-1] == "23"
    pairs = [
        (k, characters[s])
        for k, s in zip(routes.expert, routes.stems, strict=True)
        if s in characters
    ]
    score = adjusted_mutual_info_score([c for _, c in pairs], [k for k, _ in pairs])
    assert f"is {score:.3f} over 23 images" in page.text
    assert "1 image had no character" in page.text


def test_images_per_expert_and_examples(page):
    assert page.tables[1][1] == ["plain", "8|33 %", "8|33 %", "8|33 %", "24"]
    assert "divdr 100.0 %" in page.text
    assert "Two runs & more" in page.text
    assert "A note." in page.text


def test_missing_parts(tmp_path):
    (tmp_path / "training").mkdir()
    write_metrics(tmp_path / "training")
    (tmp_path / "results" / "inference").mkdir(parents=True)
    stored = {
        "toy_val": {
            "sem_seg": {"IoU": 40.5},
            "routing": {"images_expert_0": 3.0, "images_expert_1": 1},
        }
    }
    (tmp_path / "results" / "inference" / "results.json").write_text(json.dumps(stored))
    runs = [RunData.load(tmp_path / name) for name in ("training", "results")]
    path = write_report(tmp_path / "r.html", runs, title="t", dataset_name="toy_val")
    page = Page(path.read_text(encoding="utf-8"))
    assert page.tables[0][1] == ["results", "40.50", *["–"] * 9]
    assert page.tables[1][1] == ["results", "3|75 %", "1|25 %", "4"]
    assert len(page.images) == 3
    for sentence in (
        "There are no evaluation results on toy_val for training.",
        "There are no training curves for results.",
        "training has no stored gate activations.",
        "No example images were given.",
    ):
        assert sentence in page.text


def test_modes_of_running_a_model_stand_beside_each_other(tmp_path):
    write_metrics(tmp_path)
    (tmp_path / "experts").mkdir()
    rows = [
        {"name": "dynamic", "accuracy": {"mIoU": 29.857}, "gflops": 0.1155, "milliseconds": 80.0},
        {"name": "static", "accuracy": {"mIoU": 29.421}, "gflops": 0.1133, "milliseconds": 64.0},
    ]
    (tmp_path / "experts" / "experts.json").write_text(json.dumps({"ways": rows}))
    path = write_report(
        tmp_path / "r.html", [RunData.load(tmp_path)], title="t", dataset_name="toy_val"
    )
    page = Page(path.read_text(encoding="utf-8"))
    name = tmp_path.name
    assert page.tables[0][0] == [name, "mIoU, %", "real GFLOPs", "ms an image"]
    assert page.tables[0][1] == ["dynamic", "29.86", "0.1155", "80.0"]
    assert page.tables[0][2] == ["static", "29.42|−0.44", "0.1133", "64.0|× 0.80"]
    assert f"Of the execution modes of {name}, the fastest is: static." in page.text
    (tmp_path / "experts" / "experts.json").write_text("[]")
    with pytest.raises(DataError, match="no comparison"):
        RunData.load(tmp_path)


def test_the_foot_tells_when_by_what_and_where_runs_were_made(tmp_path):
    for name in ("told", "killed", "untold"):
        (tmp_path / name).mkdir()
        write_metrics(tmp_path / name)
    entry = {
        "started": "2026-03-04T05:06:07+00:00",
        "version": "0.1.0",
        "commit": "abc1234",
        "machine": {"cpu": "Some CPU", "device": "cpu", "threads": 4, "torch": "2.11"},
        "processes": 2,
    }
    ended = {**entry, "started": "2026-03-05T00:00:00+00:00", "seconds": 3600, "finished": True}
    told = [{**entry, "seconds": 600.0}, ended]
    (tmp_path / "told" / "facts.json").write_text(json.dumps(told))
    (tmp_path / "killed" / "facts.json").write_text(json.dumps([entry]))
    runs = [RunData.load(tmp_path / name) for name in ("told", "killed", "untold")]
    path = write_report(tmp_path / "r.html", runs, title="t", dataset_name="toy_val")
    text = Page(path.read_text(encoding="utf-8")).text
    code = "divdr 0.1.0, commit abc1234; Some CPU, threads: 4, processes: 2, torch 2.11."
    assert (
        "told: 2000 iterations; started 2026-03-04 05:06 UTC, last resumed 2026-03-05 00:00 UTC, "
        f"70 min with evaluation; {code}"
    ) in text
    assert f"killed: 2000 iterations; started 2026-03-04 05:06 UTC, not finished; {code}" in text
    assert "untold: 2000 iterations; its folder does not tell when" in text


def test_a_run_without_routing_has_none_of_its_chapters(tmp_path):
    (tmp_path / "inference").mkdir()
    figures = {"bbox": {"AP": 12.5, "AP-cat": 10.0, "AP-dog": None}, "cost": {"gflops": 3.25}}
    figures["box_head"] = {"gflops": 0.5, "mean_experts": 1.75}
    (tmp_path / "inference" / "results.json").write_text(json.dumps({"toy_val": figures}))
    run = RunData.load(tmp_path, "plain")
    page = Page(
        write_report(tmp_path / "r.html", [run], title="t", dataset_name="toy_val").read_text()
    )
    assert page.tables[0] == [
        ["run", "box AP", "backbone GFLOPs", "box head GFLOPs", "experts of a proposal"],
        ["plain", "12.50", "3.25", "0.50", "1.75"],
    ]
    assert page.tables[1] == [["box AP", "plain"], ["cat", "10.0"], ["dog", "–"]]
    for word in ("route", "gate", "inter is"):
        assert word not in page.text


def test_classifiers_are_shown_with_what_each_run_says(tmp_path):
    (tmp_path / "inference").mkdir()
    figures = {"classification": {"top1": 50.0, "top1-a": 100.0, "top1-b": 0.0}}
    (tmp_path / "inference" / "results.json").write_text(json.dumps({"toy_val": figures}))
    image = np.zeros((8, 8), np.uint8)
    told = [ClassExample(image, name, {"mix": ("a", 0.75)}) for name in ("a", "b")]
    counts = np.array([[3, 1, 0], [0, 4, 0]])
    choices = ExpertChoices("experts", ["x", "y", "z"], ["a", "b"], counts)
    page = Page(
        write_report(
            tmp_path / "r.html",
            [RunData.load(tmp_path, "mix")],
            title="t",
            dataset_name="toy_val",
            examples=told,
            choices={"mix": choices},
        ).read_text()
    )
    assert "right are mix 1 of 2." in page.text
    assert page.tables[2] == [
        ["mix", "x", "y", "z"],
        ["a", "3", "1", "0"],
        ["b", "0", "4", "0"],
        ["all", "3", "5", "0"],
    ]
    assert "1 expert ran for none" in page.text
    assert len(page.images) == 2
    (figure,) = (p.figure for p in examples_section(told, None, ()).pictures)
    said = [axis.texts[0] for axis in figure.axes]
    assert [text.get_text() for text in said] == ["a (75 %)"] * 2
    assert [text.get_color() for text in said] == [RIGHT, WRONG]


def test_run_without_experts_or_images(tmp_path):
    write_run(tmp_path / "a", space=SPACE, images=4)
    path = tmp_path / "a" / "inference" / "activations_toy_val.npz"
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    arrays |= {"centres": np.zeros((0, SPACE.activation_size)), "expert": np.full(4, -1)}
    np.savez(path, **arrays)
    written = write_report(
        tmp_path / "r.html",
        [RunData.load(tmp_path / "a")],
        title="t",
        dataset_name="toy_val",
        characters={"city_000": "city"},
    )
    page = Page(written.read_text(encoding="utf-8"))
    assert "a has no experts." in page.text
    assert "a has no experts on toy_val." in page.text
    assert "placed by PCA" in page.text  # four images are too few for t-SNE


def test_pictures_that_are_not_there(tmp_path):
    write_run(tmp_path / "a", space=SPACE, images=6)
    written = write_report(
        tmp_path / "r.html", [RunData.load(tmp_path / "a")], title="t", dataset_name="toy_val"
    )
    assert "the images themselves are not where" in written.read_text(encoding="utf-8")


def test_a_number_that_results_do_not_hold_is_a_dash(tmp_path):
    write_run(tmp_path / "a", space=SPACE, images=6)
    file = tmp_path / "a" / "inference" / "results.json"
    results = json.loads(file.read_text())
    routing = results["toy_val"]["routing"]
    for key in ("inter_experts", "intra_pairs_experts", "intra_centre_experts"):
        del routing[key]
    routing["inter"] = 9.876  # what files of before call the refit's
    file.write_text(json.dumps(results))
    written = write_report(
        tmp_path / "r.html", [RunData.load(tmp_path / "a")], title="t", dataset_name="toy_val"
    )
    page = Page(written.read_text(encoding="utf-8"))
    assert page.tables[0][1][5:] == ["–", "–", "–", "2.910", "0.550", "0.350"]
    assert "– stands for a number that the run's results do not hold" in page.text
    assert "9.876" not in page.text


def test_other_data_set(tmp_path, runs):
    written = write_report(tmp_path / "r.html", runs, title="t", dataset_name="elsewhere")
    page = Page(written.read_text(encoding="utf-8"))
    assert "no evaluation results on elsewhere for plain and divdr" in page.text


def test_runs_need_different_names(tmp_path, runs):
    for wrong in ([], [runs[0], runs[0]]):
        with pytest.raises(ValueError, match="different names"):
            write_report(tmp_path / "r.html", wrong, title="t", dataset_name="toy_val")
