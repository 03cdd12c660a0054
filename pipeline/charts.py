"""Where the marks of a chart go: numbers in, places in a box of 640 × 240 out. `pages/charts.html` draws them as SVG.

     240 ┤        ▂
         │    ▅   █   ▃         bars:   one per bin, from the baseline up
         │ ▂  █   █   █  ▁      curve:  y over x, both on logarithmic scales, as one path
       0 ┴─┴──┴───┴───┴──┴      points: a cloud in a square

A chart is a dict of plain numbers and strings, so that whatever a label holds is escaped where it is drawn. Colours come
from the page's style sheet and follow its theme. A library of charts would bring its own: pygal takes 0.2 s to import and
writes fixed colours and today's date, matplotlib takes 0.4 s and turns letters into outlines.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

WIDTH, HEIGHT = 640.0, 240.0
LEFT, TOP, RIGHT, BOTTOM = 56.0, 12.0, 12.0, 34.0  # room for the labels of the axes
Chart = dict[str, Any]


def short(value: float) -> str:
    """A number as the label of an axis.

    >>> [short(value) for value in (0, 0.25, 12, 1500, 20_000, 3_400_000)]
    ['0', '0.25', '12', '1.5k', '20k', '3.4M']
    """
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def ticks(top: float, most: int = 4) -> list[float]:
    """Round numbers from 0 up to at most `top`, a step of 1, 2 or 5 times a power of ten apart.

    >>> ticks(7), ticks(0.9)
    ([0, 2, 4, 6], [0, 0.5])
    """
    if top <= 0:
        return [0]
    power = 10 ** math.floor(math.log10(top / most))
    step = next(power * m for m in (1, 2, 5, 10) if top / (power * m) <= most)
    return [0, *(step * i for i in range(1, int(top / step + 1e-9) + 1))]


def bars(labels: Sequence[str], values: Sequence[float], titles: Sequence[str]) -> Chart:
    """One bar per value, all from 0. `titles` say each bar in words."""
    top = max(values, default=0) or 1
    inner, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    wide = inner / max(1, len(values))
    skip = math.ceil(len(labels) * 44 / inner) if labels else 1
    return {
        "kind": "bars",
        "bars": [
            {
                "x": round(LEFT + i * wide + wide * 0.08, 2),
                "y": round(TOP + tall - tall * value / top, 2),
                "width": round(wide * 0.84, 2),
                "height": round(max(tall * value / top, 1.0 if value else 0.0), 2),
                "title": title,
            }
            for i, (value, title) in enumerate(zip(values, titles, strict=True))
        ],
        "x_ticks": [{"x": round(LEFT + (i + 0.5) * wide, 2), "text": label} for i, label in enumerate(labels) if i % skip == 0],
        "y_ticks": [{"y": round(TOP + tall - tall * tick / top, 2), "text": short(tick)} for tick in ticks(top)],
    }


def curve(xs: Sequence[float], ys: Sequence[float]) -> Chart:
    """A line through positive numbers, both axes logarithmic: a power law is straight."""
    inner, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    decades = [max(1, math.ceil(math.log10(max(values, default=1)) - 1e-9)) for values in (xs, ys)]

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            round(LEFT + inner * math.log10(x) / decades[0], 2),
            round(TOP + tall - tall * math.log10(y) / decades[1], 2),
        )

    return {
        "kind": "curve",
        "points": [place(x, y) for x, y in zip(xs, ys, strict=True)],
        "x_ticks": [{"x": place(10**i, 1)[0], "text": short(10**i)} for i in range(decades[0] + 1)],
        "y_ticks": [{"y": place(1, 10**i)[1], "text": short(10**i)} for i in range(decades[1] + 1)],
    }


def cloud(places: np.ndarray, titles: Sequence[str], marks: Sequence[int]) -> Chart:
    """Points in the plane, float `[n, 2]`, scaled alike in both directions. `marks` number the colour of each."""
    middle = (places.max(0) + places.min(0)) / 2 if len(places) else np.zeros(2)
    reach = float(np.abs(places - middle).max()) if len(places) else 0.0
    scaled = (places - middle) / (2.1 * (reach or 1.0)) + 0.5
    return {
        "kind": "cloud",
        "points": [
            {"x": round(float(x) * WIDTH, 1), "y": round((1 - float(y)) * WIDTH * 0.75, 1), "title": title, "mark": mark}
            for (x, y), title, mark in zip(scaled, titles, marks, strict=True)
        ],
    }
