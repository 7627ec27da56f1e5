"""English and German sentences from small drawn index files."""

import json
import os
import stat
from collections import Counter

import pytest
from prepared.debian_en_de import (
    family,
    is_translation,
    paragraphs,
    prepare_debian_en_de,
    read_index,
    sentences,
    split_pairs,
)

from divdr.errors import DataError

ENGLISH = """Package: ant
Description-md5: 01
Description-en: small insect
 An ant is a small insect, e.g. the
 red one. It lives in nests! Does it sting?
 .
 It needs:
  * wood;
  * a queen, who
    lays eggs.

Package: bee
Description-md5: 02
Description-en: insect with wings
 One sentence here. And a second.

Package: cat
Description-md5: 03
Description-en: animal of the house

Package: dog
Description-md5: 04
Description-en: another animal
 It barks.
"""
GERMAN = """Package: ant
Description-md5: 01
Description-de: Kleines Insekt
 Die Ameise ist ein kleines Insekt, z. B. die rote.
 Sie lebt in Nestern! Sticht sie?
 .
 Sie braucht:
  * Holz;
  * eine Königin,
    die Eier legt.

Package: bee
Description-md5: 02
Description-de: Insekt mit Flügeln
 Beides in einem Satz.

Package: cat
Description-md5: 99
Description-de: Haustier, in der Fassung davor

Package: dog
Description-md5: 04
Description-de: noch ein Tier
 Es bellt.
 .
 Ein Absatz, den es im Englischen nicht gibt.
"""


@pytest.fixture
def index(tmp_path):
    folder = tmp_path / "lists"
    folder.mkdir()
    # All of it as often as it takes for each split to get some.
    english, german = [], []
    for number in range(60):
        for part, out in ((ENGLISH, english), (GERMAN, german)):
            part = part.replace("Package: ", f"Package: p{number}x")
            out.append(
                part.replace("insect", f"insect{number}").replace("Insekt", f"Insekt{number}")
            )
    (folder / "host_dists_main_i18n_Translation-en").write_text("\n".join(english))
    (folder / "host_dists_main_i18n_Translation-de").write_text("\n".join(german))
    return folder


def read(folder, split):
    lines = [(folder / f"{split}.{side}").read_text().splitlines() for side in ("en", "de")]
    return list(zip(*lines, strict=True))


def test_what_comes_out(index, tmp_path):
    folder = prepare_debian_en_de(tmp_path / "out", index, share=0.2)
    splits = {split: read(folder, split) for split in ("train", "valid", "test")}
    everything = {pair for pairs in splits.values() for pair in pairs}
    for number in (0, 59):
        assert {
            (f"small insect{number}", f"Kleines Insekt{number}"),
            (
                f"An ant is a small insect{number}, e.g. the red one.",
                f"Die Ameise ist ein kleines Insekt{number}, z. B. die rote.",
            ),
            (f"insect{number} with wings", f"Insekt{number} mit Flügeln"),
        } <= everything
    assert ("It lives in nests!", "Sie lebt in Nestern!") in everything
    assert ("Does it sting?", "Sticht sie?") in everything
    assert ("a queen, who lays eggs.", "eine Königin, die Eier legt.") in everything
    text = " ".join(word for pair in everything for word in pair)
    # Paragraphs of unlike numbers of sentences, other versions, unlike numbers of paragraphs.
    for dropped in ("second", "Beides", "house", "barks", "bellt"):
        assert dropped not in text
    # No sentence of either language is in two splits; none is twice in one.
    for side in (0, 1):
        seen = [{pair[side] for pair in pairs} for pairs in splits.values()]
        assert sum(map(len, seen)) == len(set().union(*seen))
    assert all(len(pairs) == len(set(pairs)) > 3 for pairs in splits.values())
    note = json.loads((folder / "debian_en_de.json").read_text())
    assert note["counts"]["descriptions"] == 180
    assert note["counts"]["descriptions dropped"] == 60
    assert note["counts"]["paragraphs dropped"] == 60


def test_again_does_nothing_and_other_settings_anew(index, tmp_path):
    folder = prepare_debian_en_de(tmp_path, index, share=0.2)
    (folder / "train.en").write_text("touched")
    prepare_debian_en_de(tmp_path, "nowhere", share=0.2)
    assert (folder / "train.en").read_text() == "touched"
    prepare_debian_en_de(tmp_path, index, share=0.3)
    assert len(read(folder, "valid")) > 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("title", ["title"]),
        ("title\n one\n two\n .\n three", ["title", "one two", "three"]),
        ("t\n List:\n  - a\n  - b\n    c\n  1. d", ["t", "List:", "a", "b c", "d"]),
        ("t\n .\n .\n x\n  * \n", ["t", "x *"]),
    ],
)
def test_paragraphs(text, expected):
    assert paragraphs(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('He said "No." (Yes!) And?', ['He said "No."', "(Yes!)", "And?"]),
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("See e.g. Emacs or Vim, resp. Nano.", ["See e.g. Emacs or Vim, resp. Nano."]),
        ("Am 3. Mai, d. h. Montag. Danach", ["Am 3. Mai, d. h. Montag.", "Danach"]),
        ("By J. R. R. Tolkien. Yes.", ["By J. R. R. Tolkien.", "Yes."]),
        ("Version 1.2 of it. next", ["Version 1.2 of it. next"]),
        ("Er sagte: „Ja.“ Dann ging er.", ["Er sagte: „Ja.“", "Dann ging er."]),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


def test_what_can_be_a_translation():
    assert is_translation("a tool", "ein Werkzeug")
    assert not is_translation("Emacs", "Emacs")  # not translated
    assert not is_translation("1.2.3", "1,2,3")
    assert not is_translation("short", "ein Satz, der von etwas ganz anderem handelt als der da")


def test_versions_and_parts_of_a_program_are_one_family():
    assert {family(name) for name in ("gcc-12-base", "gcc-13-doc", "gcc")} == {"gcc"}
    assert {family(name) for name in ("python3-yaml", "python3.11", "python-doc")} == {"python"}
    assert family("0ad-data") == "0ad"
    assert family("4") == "4"  # something is always left
    found = [(f"tool-{n}", (f"sentence {n}", f"Satz {n}")) for n in range(9)]
    splits = split_pairs(iter(found), 0.3, Counter())
    assert sorted(len(pairs) for pairs in splits.values()) == [0, 0, 9]


def test_apt_fetches_into_a_folder_of_its_own(index, tmp_path, monkeypatch):
    """A stand-in for apt-get puts the files where the configuration that it is given says."""
    stub = tmp_path / "bin" / "apt-get"
    stub.parent.mkdir()
    stub.write_text(
        "#!/bin/sh\n"
        'lists=$(sed -n \'s/^Dir::State::lists "\\(.*\\)";/\\1/p\' "$3")\n'
        # apt has read the machine's own list of languages before, which may be none.
        'grep -A 1 "^#clear Acquire::Languages;" "$3" |'
        ' grep -q \'Acquire::Languages { "de"; "en"; };\' || exit 3\n'
        f'test "$1 $2" = "update -c" && cp {index}/* "$lists"\n'
    )
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{stub.parent}:{os.environ['PATH']}")
    folder = prepare_debian_en_de(tmp_path / "out", share=0.2)
    assert ("Does it sting?", "Sticht sie?") in read(folder, "train")
    stub.write_text("#!/bin/sh\necho E: no network >&2\nexit 100\n")
    with pytest.raises(DataError, match="apt-get update failed: E: no network"):
        prepare_debian_en_de(tmp_path / "other", share=0.2)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(DataError, match="come through apt-get, which is not here"):
        prepare_debian_en_de(tmp_path / "other", share=0.2)


def test_an_index_without_translations_is_told(tmp_path):
    with pytest.raises(DataError, match="holds no Translation-en with descriptions"):
        prepare_debian_en_de(tmp_path, tmp_path)
    (tmp_path / "x_Translation-en").write_text("Package: a\n\n")
    with pytest.raises(DataError, match="holds no Translation-en with descriptions"):
        read_index(tmp_path, "en")
    for side in ("en", "de"):
        (tmp_path / f"x_Translation-{side}").write_text(
            f"Package: a\nDescription-md5: 1\nDescription-{side}: word of {side}\n"
        )
    with pytest.raises(DataError, match=r"the index gives no sentence to .*; it is too small"):
        prepare_debian_en_de(tmp_path, tmp_path)
