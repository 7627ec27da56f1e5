"""Getting and cutting data sets of photographs; ``prepare_*.py`` beside this folder run it."""
