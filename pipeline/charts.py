"""The charts of the pages: pygal draws them as SVG, the style sheet of the page colours them.

pygal puts a style, a script and today's date into each; `_plain` takes them out, so that a chart needs no script, follows
the theme of its page and is the same again. What it says of a mark becomes the mark's title, and its tip where there are
scripts. Whatever a label holds, it is escaped.

Of the libraries that write SVG it costs a run least: 0.16 s of CPU, its import and four charts. lets-plot takes 0.11 s, but
29 MB and colours of its own; toyplot takes 0.7 s, Altair with vl-convert 1.2 s and 94 MB, matplotlib 1.6 s.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from xml.etree.ElementTree import SubElement

WIDTH, HEIGHT, LABEL = 640, 240, 25  # LABEL: pixels of letters at most (see page.css), for which room is left
KEPT = ("g", "path", "rect", "circle", "text")
DROPPED = ("background", "titles", "plot text-overlay", "plot tooltip-overlay")
Chart = dict[str, Any]  # what `draw` takes, plain numbers and strings


def short(value: float) -> str:
    """A number as the label of an axis.

    >>> [short(value) for value in (0, 0.25, 12, 1500, 20_000, 3_400_000)]
    ['0', '0.25', '12', '1.5k', '20k', '3.4M']
    """
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def bars(labels: Sequence[str], values: Sequence[float], said: Sequence[str]) -> Chart:
    """One bar per value, all from 0; what is `said` of each tells it in words."""
    return {"kind": "bars", "labels": [*labels], "values": [*values], "said": [*said]}


def curve(points: Sequence[tuple[float, float]], said: Sequence[str]) -> Chart:
    """A line through positive numbers, both axes logarithmic: a power law is straight."""
    return {"kind": "curve", "points": [*points], "said": [*said]}


def cloud(points: Sequence[tuple[float, float]], said: Sequence[str], classes: Sequence[str]) -> Chart:
    """Points in the plane, scaled alike in both directions; `classes` are the style sheet's, one a point."""
    return {"kind": "cloud", "points": [*points], "said": [*said], "classes": [*classes]}


def draw(chart: Chart, label: str) -> str:
    """A chart as an SVG element, with what it shows as a whole as its label."""
    drawn = {"bars": _bars, "curve": _curve, "cloud": _cloud}[chart["kind"]](chart)
    drawn.add_xml_filter(lambda root: _plain(root, label))
    return str(drawn.render(is_unicode=True))


def _bars(chart: Chart) -> Any:
    import pygal

    every = -(-len(chart["labels"]) // 7)
    drawn = pygal.Bar(**_settings(), x_labels_major_every=every, show_minor_x_labels=every == 1)
    drawn.x_labels = chart["labels"]
    drawn.add("", _marks(chart["values"], chart["said"]))
    return drawn


def _curve(chart: Chart) -> Any:
    import pygal

    drawn = pygal.XY(**_settings(), logarithmic=True, dots_size=4)
    ends = [max(point[axis] for point in chart["points"]) for axis in (0, 1)]
    drawn.x_labels, drawn.y_labels = ([10**power for power in range(len(str(int(end))) + 1)] for end in ends)
    drawn.xrange, drawn.range = (1, drawn.x_labels[-1]), (1, drawn.y_labels[-1])
    drawn.add("", _marks(chart["points"], chart["said"]))
    return drawn


def _cloud(chart: Chart) -> Any:
    import pygal

    drawn = pygal.XY(**_settings(), stroke=False, dots_size=5, show_x_labels=False, show_y_labels=False)
    drawn.height = WIDTH * 3 // 4
    (left, right), (low, high) = ((min(axis), max(axis)) for axis in zip(*chart["points"], strict=True))
    x, y, reach = (left + right) / 2, (low + high) / 2, 0.525 * max(right - left, high - low) or 1.0
    drawn.xrange, drawn.range = (x - reach * 4 / 3, x + reach * 4 / 3), (y - reach, y + reach)
    marks = _marks(chart["points"], chart["said"])
    drawn.add("", [{**mark, "node": {"class": name}} for mark, name in zip(marks, chart["classes"], strict=True)])
    return drawn


def _marks(values: Sequence[Any], said: Sequence[str]) -> list[Chart]:
    return [{"value": value, "label": label} for value, label in zip(values, said, strict=True)]


@lru_cache(maxsize=1)
def _settings() -> Chart:
    from pygal.style import Style

    return {
        "width": WIDTH, "height": HEIGHT, "margin": 10, "margin_right": 22, "spacing": 8, "style": Style(label_font_size=LABEL),
        "css": [], "js": [], "explicit_size": False, "no_prefix": True, "disable_xml_declaration": True,
        "show_legend": False, "max_scale": 6, "truncate_label": -1, "value_formatter": short, "x_value_formatter": short,
    }  # fmt: skip


def _plain(root: Any, label: str) -> Any:
    """The chart less all but its axes and marks, each mark with its title."""
    root.attrib.pop("id")
    root.attrib |= {"class": "chart", "role": "img", "aria-label": label, "tabindex": "0"}
    for parent in reversed([*root.iter()]):  # the inner ones first
        said = [child.text for child in parent if child.get("class") == "label"]
        for child in [*parent]:
            if child.tag not in KEPT or child.get("class") in DROPPED:
                parent.remove(child)
            elif said and child.get("class") != "text":
                child.set("data-tip", said[0])
                SubElement(child, "title").text = said[0]
    return root
