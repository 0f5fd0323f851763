"""Charts of lines as SVG: panels with a grid, a key of coloured ways, light and dark."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape

_STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328; }
.title { font-size: 15px; font-weight: 600; }
.head { font-weight: 600; }
.tick { font-size: 11px; fill: #59636e; }
.grid { stroke: #d1d9e0; stroke-width: 1; }
.line { fill: none; stroke-width: 2; }
.thin { fill: none; stroke-width: 0.8; opacity: 0.5; }
"""
_DARK = "text { fill: #f0f6fc; }\n.tick { fill: #9198a1; }\n.grid { stroke: #3d444d; }\n"

Colours = Mapping[str, tuple[str, str]]
"""Way -> its colour on light and on dark."""
Point = tuple[float, float]
Scale = Callable[[float], float]
"""From a value to a place on the page."""


def page(width: int, height: int, title: str, source: str, colours: Colours, parts: Iterable[str]) -> str:
    """Return an SVG file with a title, a key of the ways below it, `parts`, and a line at the foot."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">'
    )
    light, dark = (_rules(colours, theme) for theme in (0, 1))
    style = f"<style>{_STYLE}{light}@media (prefers-color-scheme: dark) {{\n{_DARK}{dark}}}\n</style>"
    lines = [head, style, text(4, 22, title, "title"), *_key(colours), *parts, text(4, height - 8, source, "tick")]
    return "\n".join([*lines, "</svg>", ""])


def _rules(colours: Colours, theme: int) -> str:
    return "".join(
        f"circle.{kind(way)} {{ fill: {pair[theme]}; }}\npolyline.{kind(way)} {{ stroke: {pair[theme]}; }}\n"
        for way, pair in colours.items()
    )


def _key(colours: Colours) -> Iterator[str]:
    at = 4.0
    for way in colours:
        yield dot(at + 5, 43, way, 5)
        yield text(at + 15, 48, way, "key")
        at += 34 + 7.2 * len(way)


def across(left: int, width: int, y: Scale, ticks: Sequence[float], form: str) -> Iterator[str]:
    """Yield a panel's horizontal lines and their numbers."""
    for tick in ticks:
        yield grid(left, y(tick), left + width, y(tick))
        yield text(left - 6, y(tick) + 4, form.format(tick), "tick", "end")


def along(top: int, height: int, x: Scale, ticks: Sequence[float], form: str) -> Iterator[str]:
    """Yield a panel's vertical lines and their numbers."""
    for tick in ticks:
        yield grid(x(tick), top, x(tick), top + height)
        yield text(x(tick), top + height + 16, form.format(tick), "tick", "middle")


def mean(points: Sequence[Point]) -> Point:
    """Return the mean of points above each other."""
    return points[0][0], sum(y for _, y in points) / len(points)


def kind(way: str) -> str:
    """Return the class of what is drawn for a way."""
    return "way-" + "".join(letter if letter.isalnum() else "-" for letter in way)


def line(points: Iterable[Point], way: str, style: str) -> str:
    """Return a line of the style "line" or "thin"."""
    where = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="{style} {kind(way)}" points="{where}"/>'


def bar(start: float, end: float, y: float, thickness: float, way: str) -> str:
    """Return a bar around a height in the colour of a way."""
    points = f"{start:.1f},{y:.1f} {end:.1f},{y:.1f}"
    return f'<polyline class="{kind(way)}" style="stroke-width: {thickness:g}" points="{points}"/>'


def dot(x: float, y: float, way: str, radius: float = 3) -> str:
    """Return a dot in the colour of a way."""
    return f'<circle class="{kind(way)}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>'


def grid(x1: float, y1: float, x2: float, y2: float) -> str:
    """Return a line of the grid."""
    return f'<line class="grid" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def text(x: float, y: float, words: str, style: str, anchor: str = "start") -> str:
    """Return text of the style "title", "head", "tick" or "key"."""
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
