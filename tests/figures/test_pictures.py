"""All figures of a study: reproducible bytes, and series that are distinguishable without their hue."""

import itertools
import json
import os
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pictures
import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from erlab.figures import simulation, style

LIGHTER = 10  # CIE L*, of 100: difference at which two separate greys are distinguishable


def lightness(color) -> float:
    """Compute CIE L* of a colour (0 black, 100 white), which a greyscale copy keeps."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return 116 * np.cbrt(np.dot((0.2126, 0.7152, 0.0722), linear)) - 16


@pytest.fixture(scope="module")
def drawn():
    yield pictures.draw()
    plt.close("all")


def test_figures_have_the_same_bytes_in_another_process(drawn):
    """The other process has another hash seed, so sets of strings have another order."""
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    path = os.pathsep.join([os.path.dirname(pictures.synthetic.__file__), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path}
    other = subprocess.Popen([sys.executable, pictures.__file__], env=environment, stdout=subprocess.PIPE)
    here, there = pictures.hashes(drawn), json.loads(other.communicate()[0])
    assert len(here) >= 12 + 4 * 4 and [name for name in here if here[name] != there[name]] == []


def series(fig) -> list[set[tuple]]:
    """Return the (marker, dash, filled) and colour of each line with markers, for each panel."""
    panels = [*fig.axes, *(child for ax in fig.axes for child in ax.child_axes)]
    lines = [[line for line in ax.get_lines() if line.get_marker() not in ("None", "", None)] for ax in panels]
    return [{look(line) for line in panel} for panel in lines]


def look(line) -> tuple:
    filled = to_rgb(line.get_markerfacecolor()) != (1, 1, 1)
    return (line.get_marker(), str(line._dash_pattern), filled), to_rgb(line.get_color())


def test_series_differ_in_marker_dash_filling_or_lightness(drawn):
    pairs = [pair for fig in drawn.values() for panel in series(fig) for pair in itertools.combinations(panel, 2)]
    assert len(pairs) > 200
    for (one, color), (other, another) in pairs:
        assert one != other or abs(lightness(color) - lightness(another)) >= LIGHTER, (one, color, another)


def test_looks_of_systems_other_systems_and_overlays_differ():
    systems = style.looks([*"ABCDE", "TP8", "70B-INT8", "13B-FP16", "13B-FP8", *(f"other {i}" for i in range(10))])
    for one, other in itertools.combinations(systems.values(), 2):
        same_line = (one.marker, one.dash) == (other.marker, other.dash)
        assert not same_line or abs(lightness(one.color) - lightness(other.color)) >= LIGHTER, (one, other)
    assert len({style.overlaid(systems["A"], i) for i in range(8)}) == 8


def test_verdicts_differ_in_lightness_and_mark(drawn):
    (ax,) = drawn["sensitivity"].axes
    colors = {patch.get_facecolor() for patch in ax.patches if isinstance(patch, Rectangle)}
    assert len(colors) == 3 and {text.get_text() for text in ax.texts} == {"✓", "✗", "–"}
    colors = {verdict: color for verdict, (color, _) in simulation._VERDICTS.items()}
    assert abs(lightness(colors["holds"]) - lightness(colors["does not hold"])) >= LIGHTER
