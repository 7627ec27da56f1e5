"""English and German sentences from Debian's package index, whose descriptions are translated.

A description is a title and paragraphs of flowed text, with lists among them. Both languages keep
that layout, so that paragraphs, items and sentences of the same number belong together.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from divdr.errors import DataError

logger = logging.getLogger(__name__)

LANGUAGES = ("en", "de")
SPLITS = ("train", "valid", "test")
# With this one the large families (Python's, fonts) are in training, and the others even.
SPLIT_SEED = 2
# No longer than what a translator writes for one thing; what is outside is misaligned.
MOST_UNLIKE = 2.5
LONGEST = 400  # characters; longer ones are lists without full stops
_ITEM = re.compile(r"(?:[*+•·-]|o|\d+[.)])\s+")
# A sentence's end and the space behind it, where another begins.
_END = re.compile(r"([.!?][\"')\]“”«»]*)\s+(?=[\"'(\[„“»«]*[A-ZÄÖÜ0-9])")
_SHORTENED = re.compile(
    r"(?:^|[\s(„\"])(?:\w|\d+|e\.g|i\.e|etc|vs|cf|resp|incl|approx|Dr|Mr|Inc|Co|St|No|z\. ?B|d\. ?h"
    r"|u\. ?a|u\. ?U|s\. ?a|o\. ?ä|usw|bzw|ca|vgl|evtl|ggf|inkl|max|min|Nr|engl|sog|u)\.$",
    re.IGNORECASE,
)

Descriptions = dict[tuple[str, str], str]
"""(package, checksum of the English text) to a description."""
Pair = tuple[str, str]


def prepare_debian_en_de(output: str | Path, lists: str | Path = "", share: float = 0.04) -> Path:
    """Put train, valid and test files into ``output``/debian_en_de; nothing if they are there.

    Args:
        output: any folder.
        lists: a folder with files ``*Translation-en`` and ``*Translation-de`` of the index; "" has
            apt-get fetch them from the machine's own sources, without root.
        share: of the package families that go to valid, and to test.

    Returns:
        The folder, with ``{train,valid,test}.{en,de}``, a sentence a line.

    Raises:
        DataError: the index cannot be had, or holds no sentence in both languages.
    """
    folder = Path(output) / "debian_en_de"
    note = folder / "debian_en_de.json"
    if note.is_file() and json.loads(note.read_text()).get("share") == share:
        logger.info("The sentences are in %s", folder)
        return folder
    with tempfile.TemporaryDirectory() as scratch:
        where = Path(lists) if lists else fetch_index(Path(scratch))
        english, german = (read_index(where, language) for language in LANGUAGES)
    counts: Counter[str] = Counter()
    splits = split_pairs(aligned(english, german, counts), share, counts)
    folder.mkdir(parents=True, exist_ok=True)
    note.unlink(missing_ok=True)
    for split, pairs in splits.items():
        if not pairs:
            raise DataError(f"the index gives no sentence to {split}; it is too small")
        for side, language in enumerate(LANGUAGES):
            text = "".join(f"{pair[side]}\n" for pair in pairs)
            (folder / f"{split}.{language}").write_text(text, encoding="utf-8")
        counts[split] = len(pairs)
    note.write_text(json.dumps({"share": share, "counts": dict(counts)}, indent=1))
    logger.info("%s: %s", folder, ", ".join(f"{count} {what}" for what, count in counts.items()))
    return folder


def fetch_index(scratch: Path) -> Path:
    """Have apt-get fetch the translated descriptions alone, into a folder of their own.

    Raises:
        DataError: there is no apt-get, it failed, or its sources hold no such descriptions.
    """
    if shutil.which("apt-get") is None:
        raise DataError("the sentences come through apt-get, which is not here; see --lists")
    lists = scratch / "lists"
    (lists / "partial").mkdir(parents=True)
    (scratch / "cache").mkdir()
    settings = scratch / "apt.conf"
    # apt adds to a list of a file before, so that it is cleared first.
    settings.write_text(
        "#clear Acquire::Languages;\n"
        'Acquire::Languages { "de"; "en"; };\n'
        'Acquire::GzipIndexes "false";\n'
        'Acquire::IndexTargets::deb::Packages::DefaultEnabled "false";\n'
        f'Dir::State::lists "{lists}";\n'
        f'Dir::Cache "{scratch / "cache"}";\n'
    )
    command = ["apt-get", "update", "-c", str(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise DataError(f"apt-get update failed: {said[-200:]}")
    return lists


def read_index(folder: Path, language: str) -> Descriptions:
    """The descriptions of a language in the index files of a folder.

    Raises:
        DataError: there are none.
    """
    files = sorted(folder.glob(f"*Translation-{language}"))
    found: Descriptions = {}
    field = re.compile(rf"^Description-{language}: (.*(?:\n[ \t].*)*)", re.MULTILINE)
    for file in files:
        for entry in file.read_text(encoding="utf-8", errors="replace").split("\n\n"):
            package = re.search(r"^Package: (.+)$", entry, re.MULTILINE)
            checksum = re.search(r"^Description-md5: (.+)$", entry, re.MULTILINE)
            text = field.search(entry)
            if package and checksum and text:
                found.setdefault((package[1], checksum[1]), text[1])
    if not found:
        raise DataError(f"{folder} holds no Translation-{language} with descriptions")
    return found


def aligned(
    english: Descriptions, german: Descriptions, counts: Counter[str]
) -> Iterator[tuple[str, Pair]]:
    """(package, sentences) of every description that both languages have.

    Args:
        english: see :func:`read_index`.
        german: likewise.
        counts: gets how many descriptions, paragraphs and sentences were used and dropped.
    """
    for key in sorted(english.keys() & german.keys()):
        counts["descriptions"] += 1
        sides = [paragraphs(text) for text in (english[key], german[key])]
        if len(sides[0]) != len(sides[1]):
            counts["descriptions dropped"] += 1
            continue
        for pair in zip(*sides, strict=True):
            counts["paragraphs"] += 1
            parts = [sentences(text) for text in pair]
            if len(parts[0]) != len(parts[1]):
                counts["paragraphs dropped"] += 1
                continue
            for first, second in zip(*parts, strict=True):
                if is_translation(first, second):
                    yield key[0], (first, second)
                else:
                    counts["sentences dropped"] += 1


def paragraphs(description: str) -> list[str]:
    """Title, paragraphs and items of lists, each as one line of text."""
    title, *lines = description.split("\n")
    found = [title.strip()]
    fresh = True
    for line in lines:
        text = line.strip()
        if text in (".", ""):
            fresh = True
            continue
        item = _ITEM.match(text)
        if item:
            text = text[item.end() :]
        if fresh or item:
            found.append(text)
        else:
            found[-1] += f" {text}"
        fresh = False
    return [re.sub(r"\s+", " ", text) for text in found if text]


def sentences(paragraph: str) -> list[str]:
    """A paragraph cut where sentences end: not behind abbreviations, initials and ordinals."""
    found, start = [], 0
    for end in _END.finditer(paragraph):
        text = paragraph[start : end.end(1)]
        if not _SHORTENED.search(text):
            found.append(text)
            start = end.end()
    return [text for text in (*found, paragraph[start:]) if text]


def is_translation(first: str, second: str) -> bool:
    """Whether two sentences can be each other's translation: different, and of like length."""
    if first == second or not re.search(r"[^\W\d_]{2}", first):
        return False
    short, long = sorted((len(first) + 10, len(second) + 10))
    return long <= min(MOST_UNLIKE * short, LONGEST + 10)


def family(package: str) -> str:
    """Packages that are likely to repeat each other's sentences: ``libxcb-xvmc0-dev`` is of libxcb.

    Versions of one program differ by a number alone, so that a split by package would ask for
    sentences that training has all but seen.
    """
    return re.sub(r"[\d.+]+$", "", package.split("-")[0]) or package


def split_pairs(
    found: Iterator[tuple[str, Pair]], share: float, counts: Counter[str]
) -> Mapping[str, list[Pair]]:
    """Pairs of each split: by package family, each pair once, none of training's in the others.

    Args:
        found: (package, sentences).
        share: of the families that go to valid, and to test.
        counts: gets how many were dropped as repeated.
    """
    splits: dict[str, dict[Pair, None]] = {split: {} for split in SPLITS}
    for package, pair in found:
        counts["sentences"] += 1
        place = hashlib.sha256(f"{SPLIT_SEED}{family(package)}".encode()).hexdigest()
        number = int(place[:8], 16) / 16**8
        split = "test" if number < share else "valid" if number < 2 * share else "train"
        splits[split][pair] = None
    kept: dict[str, list[Pair]] = {}
    seen: tuple[set[str], set[str]] = (set(), set())
    for split, pairs in splits.items():
        # A sentence with two translations may be in training twice, and in no other split again.
        fresh = [pair for pair in pairs if pair[0] not in seen[0] and pair[1] not in seen[1]]
        kept[split] = fresh
        for side in (0, 1):
            seen[side].update(pair[side] for pair in fresh)
    counts["sentences repeated"] = counts["sentences"] - sum(len(pairs) for pairs in kept.values())
    return kept
