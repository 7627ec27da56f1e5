"""README and pages: links lead somewhere, the site lists every page, printed Python runs."""

import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "datasets/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What links to headings of a page call them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    bare = [re.sub(r"[^\w\s-]", "", title.lower()) for title in titles]
    return {re.sub(r"\s", "-", title) for title in bare}


def broken(page: Path) -> list[str]:
    """Links of a page to files or headings that do not exist."""
    found = []
    for link in _LINK.findall(prose(page)):
        if re.match(r"\w+:", link):
            continue  # of elsewhere
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_file() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_exist(page):
    assert broken(page) == []


def test_broken_links_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A title, with ×\n[here](#a-title-with) [gone](#other) [page](page.md#a-title-with) "
        "![picture](none.png) [web](https://example.org/none)\n```sh\n# Code\n[x](y.md)\n```\n"
    )
    assert broken(page) == ["#a-title-with", "#other", "page.md#a-title-with", "none.png"]
    assert anchors(page) == {"a-title-with-"}


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def test_every_page_is_in_the_site():
    listed = re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = [str(p.relative_to(ROOT / "docs")) for p in PAGES if p.is_relative_to(ROOT / "docs")]
    assert sorted(listed) == sorted([*pages, "datasets.md"])  # the last is datasets/README.md


def test_readme_trains_in_a_plain_loop():
    """A small network in place of the one there, clusterings every other step."""
    section = (ROOT / "README.md").read_text().split("## In a loop of your own")[1]
    block = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    small = block.replace("layers=16, scales=4)", "layers=2, scales=2), channels=4")
    small = small.replace("step % 50 == 49", "step % 2 == 1")
    assert small.count("channels=4") == small.count("step % 2") == 1
    torch.manual_seed(0)
    batches = [([f"{b}{i}" for i in range(2)], torch.randn(2, 3, 32, 32)) for b in range(2)]
    begin, end = small.split("for step")
    names = {
        "loader": [(*batch, torch.zeros(2, dtype=torch.long)) for batch in batches * 2],
        "task_loss": lambda maps, labels: F.cross_entropy(maps[-1].mean((2, 3)), labels),
    }
    exec(begin, names)
    names["optimizer"] = torch.optim.SGD(names["network"].parameters(), lr=0.01)
    before = [p.detach().clone() for p in names["network"].parameters()]
    exec("for step" + end, names)
    assert len(names["experts"].bank) == 4
    assert names["experts"].centres.shape == (3, 12)
    assert torch.isfinite(names["loss"])
    assert any(
        (p != old).any() for p, old in zip(names["network"].parameters(), before, strict=True)
    )
