"""The page a report is written on: HTML, its style sheet, tables, figures as inline SVG. Nothing is loaded."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from PIL import Image

from analysis.drawing import STYLE, WIDTH
from orchestrator.results.location import Location

FONTS = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"

CLEAR = (1.0, 1.0, 1.0, 0.0)

STYLE_SHEET = Path(__file__).with_name("report.css")
SCRIPT = Path(__file__).with_name("report.js")
"""Both are written into the page."""


def page(title: str, body: str) -> str:
    """A whole HTML document."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE_SHEET.read_text()}</style>\n</head>\n<body>\n"
        f'<a class="skip" href="#answer">To the answer</a>\n<main>\n{body}\n</main>\n'
        f"<script>\n{SCRIPT.read_text()}</script>\n</body>\n</html>\n"
    )


def escape(text: object) -> str:
    return html.escape(str(text), quote=True)


def section(anchor: str, title: str, *parts: str) -> str:
    return (
        f'<section id="{anchor}">\n<h2>{escape(title)}</h2>\n'
        + "\n".join(part for part in parts if part)
        + "\n</section>"
    )


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of `text`, which may hold markup."""
    return f'<p class="{kind}">{text}</p>' if kind else f"<p>{text}</p>"


def bullets(items: Sequence[str], kind: str) -> str:
    """A list of items that may hold markup."""
    return f'<ul class="{kind}">' + "".join(f"<li>{item}</li>" for item in items) + "</ul>" if items else ""


def table(
    columns: Sequence[tuple[str, bool]], rows: Sequence[Sequence[str]], *, tall: bool = False, wide: bool = False
) -> str:
    """A table in a box that scrolls by itself. Columns are (title, whether it is text); cells may hold markup.

    `wide` lets the last column's text wrap.
    """
    kinds = [' class="text"' if text else "" for _, text in columns]
    last = [*kinds[:-1], ' class="text wide"'] if wide else kinds
    head = "".join(
        f'<th scope="col"{kind}>{escape(title)}</th>' for (title, _), kind in zip(columns, kinds, strict=True)
    )
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, last, strict=True)) + "</tr>\n"
        for row in rows
    )
    box = "box tall" if tall else "box"
    label = escape("Table of " + ", ".join(title for title, _ in columns if title))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"
    return f'<div class="{box}" tabindex="0" role="group" aria-label="{label}">{table}</div>'


def plot(drawing: Drawing, name: str, alt: str, caption: str = "") -> str:
    """A figure as inline SVG, with the places of its measured points for the page's script (see `point_link`)."""
    kind = ' class="wide"' if drawing.width > 1.3 * WIDTH else ' class="scrolls"' if drawing.width > 1.1 * WIDTH else ""
    text = f"<figcaption>{caption}</figcaption>" if caption else ""
    places = drawing.places
    points = f'<script type="application/json" class="points">{json_text(places)}</script>' if places["i"] else ""
    title = escape(alt.partition(".")[0])
    scrolls = f' tabindex="0" role="group" aria-label="{title}"' if kind else ""
    return (
        f'<figure{kind}><div class="plot" data-name="{title}"{scrolls}>'
        f'<div role="img" aria-label="{escape(alt)}">{_inline(drawing.svg, name)}</div>{points}</div>{text}</figure>'
    )


def grid(*figures: str) -> str:
    shown = [figure for figure in figures if figure]
    return '<div class="grid">' + "\n".join(shown) + "</div>" if shown else ""


def point_link(index: object) -> str:
    """The mark under which a plot draws a measured point, by the place of its row."""
    return f"point:{index}"


def json_text(value: object) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("</", "<\\/")


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure drawn once: its SVG, and the places `x`, `y` in the SVG's own units of the points of rows `i`."""

    svg: str
    places: dict[str, list[float]]
    width: float
    """Inches."""

    @classmethod
    def of(cls, figure: Figure, name: str) -> Drawing:
        """Draw; the figure keeps the layout that it got, so that drawing it again is quick. `name` salts its ids."""
        marked = _take_marks(figure)
        with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
            text = _svg(figure)
        figure.set_layout_engine("none")
        return cls(svg=text, places=_places(figure, marked, text), width=float(figure.get_figwidth()))


def _svg(figure: Figure) -> str:
    """What `savefig` with `transparent` writes, in two thirds of the time: that draws once for the layout and once
    more for the file."""
    canvas, dpi, buffer = figure.canvas, figure.dpi, io.StringIO()
    patches = [figure.patch, *(axes.patch for axes in figure.axes)]
    colours = [(patch.get_facecolor(), patch.get_edgecolor()) for patch in patches]
    for patch in patches:
        patch.set_facecolor(CLEAR)
    figure.patch.set_edgecolor(CLEAR)
    figure.dpi = FigureCanvasSVG.fixed_dpi
    try:
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        FigureCanvasSVG(figure).print_svg(buffer, metadata=metadata)
    finally:
        figure.set_canvas(canvas)
        figure.dpi = dpi
        for patch, (face, edge) in zip(patches, colours, strict=True):
            patch.set(facecolor=face, edgecolor=edge)
    return buffer.getvalue()


def _inline(text: str, name: str) -> str:
    """SVG text without prologue, as wide as it may be; ids are prefixed with `name`: drawings share one page."""
    text = text[text.index("<svg") :].strip()
    for _ in ("width", "height"):
        text = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace("'DejaVu Sans'", FONTS)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    return re.sub(r"url\(#", f"url(#{name}-", text)


Marked = list[tuple[PathCollection, list[int]]]


def _take_marks(figure: Figure) -> Marked:
    """The collections whose points are rows of the table, and these rows; their links are taken away."""
    marked: Marked = []
    for artist in (c for axes in figure.axes for c in axes.collections):
        urls = [url for url in artist.get_urls() or () if url]
        if isinstance(artist, PathCollection) and urls:
            marked.append((artist, [int(str(url).removeprefix("point:")) for url in urls]))
            artist.set_urls([None])
    return marked


def _places(figure: Figure, marked: Marked, text: str) -> dict[str, list[float]]:
    """Where the drawn points lie in the SVG's own units; those outside of their axes are left out."""
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert box is not None
    size = np.array([float(box[1]), float(box[2])])
    found: dict[str, list[float]] = {"x": [], "y": [], "i": []}
    for artist, rows in marked:
        assert artist.axes is not None
        at = artist.get_offset_transform().transform(artist.get_offsets())
        inside = artist.axes.bbox.padded(4).x0 <= at[:, 0]
        inside &= (at[:, 0] <= artist.axes.bbox.x1 + 4) & np.isfinite(at).all(axis=1)
        inside &= (at[:, 1] >= artist.axes.bbox.y0 - 4) & (at[:, 1] <= artist.axes.bbox.y1 + 4)
        share = figure.transFigure.inverted().transform(at)
        places = np.round(np.column_stack([share[:, 0], 1 - share[:, 1]]) * size, 1)
        found["x"] += places[inside, 0].tolist()
        found["y"] += places[inside, 1].tolist()
        found["i"] += [row for row, kept in zip(rows, inside, strict=True) if kept]
    return found


def picture(path: Location, alt: str, caption: str) -> str:
    """A PNG or a GIF, embedded. A GIF stands still until its reader asks for it, and again when it is closed."""
    data, kind = path.read_bytes(), path.name.rpartition(".")[2]
    shown = _image(data, kind, alt)
    if kind == "gif":
        still = _image(_first_frame(data), "png", f"{alt}, first frame")
        shown = f'<details class="clip"><summary>Play or stop</summary>{shown}</details>{still}'
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def _image(data: bytes, kind: str, alt: str) -> str:
    return f'<img src="data:image/{kind};base64,{base64.b64encode(data).decode()}" alt="{escape(alt)}">'


def _first_frame(gif: bytes) -> bytes:
    """As a PNG."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(gif)) as moving:
        moving.convert("RGB").save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
