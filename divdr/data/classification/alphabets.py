"""Alphabets as tasks: Omniglot in its published folders, and drawn glyphs in the same layout.

COLLECTION_ALPHABET_{train,val,test}, "omniglot_greek_train" say, are half, a fifth and the rest of
each character's drawings (Liang et al. 2018's shares; which drawings is not in any text, and is
decided here by the character's name). The class is the character, and the metadata's "task" the
alphabet.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from ...errors import DataError
from ..folders import register_anew

#: Folders below the root that hold a collection's alphabets.
COLLECTIONS = {
    "omniglot": (
        *("omniglot/images_background", "omniglot/images_evaluation"),
        *("omniglot-py/images_background", "omniglot-py/images_evaluation"),
    ),
    "glyphs": ("glyphs",),
}
SPLITS = ("train", "val", "test")
_PUBLISHED = "omniglot"
#: Omniglot's 50 alphabets, as its folders are called, and their numbers of characters; 1623 in all.
OMNIGLOT = {
    "Alphabet_of_the_Magi": 20,
    "Anglo-Saxon_Futhorc": 29,
    "Arcadian": 26,
    "Armenian": 41,
    "Asomtavruli_(Georgian)": 40,
    "Balinese": 24,
    "Bengali": 46,
    "Blackfoot_(Canadian_Aboriginal_Syllabics)": 14,
    "Braille": 26,
    "Burmese_(Myanmar)": 34,
    "Cyrillic": 33,
    "Early_Aramaic": 22,
    "Futurama": 26,
    "Grantha": 43,
    "Greek": 24,
    "Gujarati": 48,
    "Hebrew": 22,
    "Inuktitut_(Canadian_Aboriginal_Syllabics)": 16,
    "Japanese_(hiragana)": 52,
    "Japanese_(katakana)": 47,
    "Korean": 40,
    "Latin": 26,
    "Malay_(Jawi_-_Arabic)": 40,
    "Mkhedruli_(Georgian)": 41,
    "N_Ko": 33,
    "Ojibwe_(Canadian_Aboriginal_Syllabics)": 14,
    "Sanskrit": 42,
    "Syriac_(Estrangelo)": 23,
    "Tagalog": 17,
    "Tifinagh": 55,
    "Angelic": 20,
    "Atemayar_Qelisayer": 26,
    "Atlantean": 26,
    "Aurek-Besh": 26,
    "Avesta": 26,
    "Ge_ez": 26,
    "Glagolitic": 45,
    "Gurmukhi": 45,
    "Kannada": 41,
    "Keble": 26,
    "Malayalam": 47,
    "Manipuri": 40,
    "Mongolian": 30,
    "Old_Church_Slavonic_(Cyrillic)": 45,
    "Oriya": 46,
    "Sylheti": 28,
    "Syriac_(Serto)": 23,
    "Tengwar": 25,
    "Tibetan": 42,
    "ULOG": 26,
}


def register_alphabets(root: str | os.PathLike[str]) -> None:
    """Register the data sets of every alphabet that lies below a folder, and of all of Omniglot's.

    Images are not read until they are used; those that exist already are given the new folder.

    Args:
        root: the folder that holds "omniglot" (or "omniglot-py") and "glyphs".
    """
    for collection, places in COLLECTIONS.items():
        found = {folder.name: folder for place in places for folder in _folders(Path(root) / place)}
        if collection == _PUBLISHED:
            missing = Path(root) / places[0]
            found = {name: missing / name for name in OMNIGLOT} | found
        for name, folder in found.items():
            _register(collection, name, folder)


def data_set_name(collection: str, alphabet: str, split: str) -> str:
    """What an alphabet's data set is called: in small letters, and "_" for all signs between."""
    short = re.sub(r"[^a-z0-9]+", "_", alphabet.lower()).strip("_")
    return f"{collection}_{short}_{split}"


def split_drawings(names: list[str], character: str) -> dict[str, list[str]]:
    """A character's drawings for training, validation and test: a half, a fifth, and the rest.

    Args:
        names: of the files, in any order.
        character: alphabet and character, which decide what goes where.
    """
    generator = np.random.default_rng(zlib.crc32(character.encode()))
    mixed = [sorted(names)[place] for place in generator.permutation(len(names))]
    first, second = len(names) // 2, len(names) // 2 + len(names) // 5
    parts = (mixed[:first], mixed[first:second], mixed[second:])
    return {split: sorted(part) for split, part in zip(SPLITS, parts, strict=True)}


def _register(collection: str, alphabet: str, folder: Path) -> None:
    classes = [character.name for character in _folders(folder)]
    if not classes and collection == _PUBLISHED:
        classes = [f"character{number:02d}" for number in range(1, OMNIGLOT[alphabet] + 1)]
    for split in SPLITS:
        register_anew(
            data_set_name(collection, alphabet, split),
            partial(_read, folder, split),
            classes=classes,
            evaluator_type="classification",
            image_root=str(folder),
            task=f"{collection}/{alphabet}",
        )


def _read(folder: Path, split: str) -> list[dict]:
    """Dicts of one split of an alphabet.

    Raises:
        DataError: a character has too few drawings to be split.
    """
    records = []
    for label, character in enumerate(_folders(folder)):
        names = [file.name for file in character.glob("*.png")]
        chosen = split_drawings(names, f"{folder.name}/{character.name}")[split]
        if not chosen:
            raise DataError(
                f"{character} holds {len(names)} drawings, which are too few for training, "
                "validation and test"
            )
        records += [
            {
                "file_name": str(character / name),
                "image_id": f"{folder.name}/{character.name}/{name}",
                "label": label,
            }
            for name in chosen
        ]
    return records


def _folders(place: Path) -> Iterator[Path]:
    """Folders in a folder, by name; none where there is none."""
    if place.is_dir():
        yield from sorted(path for path in place.iterdir() if path.is_dir())
