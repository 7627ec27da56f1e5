"""Characters of twenty scripts from fonts, drawn anew each time, in Omniglot's layout."""

from .generate import make_glyphs
from .scripts import SCRIPTS

__all__ = ["SCRIPTS", "make_glyphs"]
