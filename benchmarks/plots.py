"""Plots as SVG text: bars with one unit, and lines over a size. They only need a browser."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from benchmarks.figures import shown

WIDTH, MARGIN, LEFT, ROW, GAP = 800, 16, 290, 20, 14
TOP, LINES_HEIGHT, LEGEND = 60, 260, 190
OURS, FLOOR = "#0a7d5a", "#8a8f98"
COLOURS = ("#4c78a8", "#e0a030", "#b5639a", "#72b7b2", "#c44e52")
#: The reference of the comparison.
GREY = ("floor", "own", "bare")
DASHES = ("none", "6 3", "2 3")

Points = Sequence[tuple[float, float]]


def bars(title: str, unit: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    """Draw a bar for each side of each group, on one scale."""
    most = max(value for sides in groups.values() for value in sides.values())
    room = WIDTH - LEFT - MARGIN - 90
    parts, y = _title(title, unit), TOP
    for group, sides in groups.items():
        parts.append(_text(MARGIN, y + 14, group, weight="bold"))
        for place, (side, value) in enumerate(sides.items()):
            row = y + place * ROW
            length = max(1.0, room * value / most)
            where = f'x="{LEFT}" y="{row + 3}" width="{length:.1f}" height="14"'
            parts += [
                _text(LEFT - 8, row + 14, side, anchor="end"),
                f'<rect {where} fill="{_colour(side, 0)}"/>',
                _text(LEFT + length + 6, row + 14, shown(value)),
            ]
        y += len(sides) * ROW + GAP
    return _svg(y, parts)


def lines(title: str, unit: str, axis: str, series: Mapping[str, Points]) -> str:
    """Draw a line for each series over a logarithmic axis; values begin at zero.

    Series whose names have the same beginning before a comma have the same colour.
    """
    sizes = sorted({size for points in series.values() for size, _ in points})
    top = _round_up(max(value for points in series.values() for _, value in points))
    left, right, bottom = 70, WIDTH - LEGEND - MARGIN, TOP + LINES_HEIGHT
    span = math.log(sizes[-1] / sizes[0]) or 1.0

    def x(size: float) -> float:
        return left + (right - left) * math.log(size / sizes[0]) / span

    def y(value: float) -> float:
        return bottom - LINES_HEIGHT * value / top

    parts = _title(title, unit)
    for step in range(5):
        value = top * step / 4
        where = f'x1="{left}" x2="{right}" y1="{y(value):.1f}" y2="{y(value):.1f}"'
        parts += [
            f'<line {where} stroke="#ddd"/>',
            _text(left - 8, y(value) + 4, shown(value), anchor="end"),
        ]
    parts += [_text(x(size), bottom + 18, f"{size:,.0f}", anchor="middle") for size in sizes]
    parts.append(_text((left + right) / 2, bottom + 36, axis, anchor="middle"))
    kinds = list(dict.fromkeys(name.partition(", ")[0] for name in series))
    seen: list[str] = []
    for place, (name, points) in enumerate(series.items()):
        kind = name.partition(", ")[0]
        colour = _colour(kind, kinds.index(kind))
        dash = f'stroke-width="2" stroke-dasharray="{DASHES[seen.count(kind) % len(DASHES)]}"'
        seen.append(kind)
        path = " ".join(f"{x(size):.1f},{y(value):.1f}" for size, value in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" {dash}/>')
        parts += [
            f'<circle cx="{x(size):.1f}" cy="{y(value):.1f}" r="3" fill="{colour}"/>'
            for size, value in points
        ]
        row = TOP + 6 + place * ROW
        ends = f'x1="{right + 14}" x2="{right + 44}" y1="{row}" y2="{row}"'
        parts += [
            f'<line {ends} stroke="{colour}" {dash}/>',
            _text(right + 50, row + 4, name),
        ]
    return _svg(bottom + 50, parts)


def _colour(side: str, place: int) -> str:
    if side.startswith("asyncjobs"):
        return OURS
    return FLOOR if side in GREY else COLOURS[place % len(COLOURS)]


def _round_up(value: float) -> float:
    """Return the next higher value that divides well by four."""
    power = 10 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(power * step for step in (1, 2, 4, 8, 10, 20) if power * step >= value)


def _title(title: str, unit: str) -> list[str]:
    return [_text(MARGIN, 24, title, size=15, weight="bold"), _text(MARGIN, 42, unit, fill="#555")]


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    size: int = 12,
    weight: str = "normal",
    fill: str = "#222",
) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    look = f'font-size="{size}" font-weight="{weight}" fill="{fill}"'
    return f"<text {place} {look}>{escape(text)}</text>"


def _svg(height: float, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}"'
    font = 'font-family="system-ui, sans-serif"'
    # White, so that it is readable on a dark page.
    ground = f'<rect width="{WIDTH}" height="{height:.0f}" fill="#fff"/>'
    return "\n".join([f"{head} {font}>", ground, *parts, "</svg>", ""])
