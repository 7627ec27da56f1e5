"""Painters of data sets to try things out on; ``make_*.py`` beside this folder run them."""
