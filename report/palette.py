"""The one set of colours, dashes and shapes, of the page and of the pictures that stand alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Theme:
    """The colours on a light or on a dark ground."""

    page: str
    soft: str  # a ground that sets something apart
    ink: str
    quiet: str  # of what is said beside
    edge: str  # of a table or a field
    grid: str  # of a chart
    accent: str  # of links
    baseline: str
    networks: tuple[str, ...]


# Okabe and Ito's colours, darker on white and lighter on black so that each stands out by 3:1; shapes and dashes tell
# them apart too.
LIGHT = Theme(
    page="#ffffff", soft="#f5f6f7", ink="#1d2126", quiet="#5c6670", edge="#d9dde1", grid="#e3e6e9", accent="#0b62a4",
    baseline="#4a4f55",
    networks=("#0072b2", "#d55e00", "#00895f", "#b4548f", "#a87400", "#2f8fca", "#7a6a00", "#8a2be2"),
)  # fmt: skip
DARK = Theme(
    page="#15181c", soft="#1e2227", ink="#e6e9ec", quiet="#a3adb7", edge="#353b42", grid="#2c3138", accent="#7cbcf0",
    baseline="#c9ced4",
    networks=("#4aa8e0", "#f08a4b", "#2fc79a", "#e3a0c8", "#efb840", "#93d3f5", "#f0e442", "#c39bf0"),
)  # fmt: skip
GREY, ALARM = "#8a8a8a", "#d55e00"  # readable on white and on the dark page

SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
PAGE_SHAPES = ("diamond", *(shape for shape in SHAPES if shape != "diamond"), "stroke")  # the first is the baseline's
DASHES = ((1, 0), (7, 3), (2, 2), (9, 3, 2, 3), (4, 2), (12, 4), (1, 3), (6, 2, 1, 2, 1, 2))
