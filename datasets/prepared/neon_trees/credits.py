"""Whom the photographs and boxes are due to."""

from __future__ import annotations

from pathlib import Path

from .wheel import LICENSE, VERSION, read_member

_CREDITS = """\
Trees in airborne photographs
=============================

Photographs and boxes come with the Python package DeepForest {version}, which asks to be cited as

    Weinstein, B.G., Marconi, S., Aubry-Kientz, M., Vincent, G., Senyondo, H. and White, E.P., 2020.
    DeepForest: A Python package for RGB deep learning tree crown delineation. Methods in Ecology
    and Evolution, 11(12), pp.1743-1751. https://doi.org/10.1111/2041-210X.13472

    Weinstein, B.G.; Marconi, S.; Bohlman, S.; Zare, A.; White, E.P., 2019. Individual Tree-Crown
    Detection in RGB Imagery Using Semi-Supervised Deep Learning Neural Networks. Remote Sensing 11,
    1309. https://doi.org/10.3390/rs11111309

The photographs are airborne imagery of the National Ecological Observatory Network (NEON), a
programme of the U.S. National Science Foundation that is operated by Battelle; sites YELL
(Yellowstone), OSBS (Ordway-Swisher Biological Station) and SOAP (Soaproot Saddle).

Here they were cut into tiles, and boxes clipped accordingly. The licence in DeepForest's package:

{license}"""


def credits_text(wheel: Path) -> str:
    """The text of CREDITS.txt, with the licence as it is in the wheel.

    Raises:
        DataError: the wheel has no licence.
    """
    text = read_member(wheel, LICENSE).decode("utf-8", errors="replace")
    return _CREDITS.format(version=VERSION, license=text)
