"""``python -m divdr``: the command ``divdr``."""

import sys

from .verbs import main

if __name__ == "__main__":
    sys.exit(main())
