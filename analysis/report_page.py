"""The page a report is written on: HTML, its style sheet, tables, figures as inline SVG. Nothing is loaded."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Callable, Sequence

import matplotlib
from matplotlib.figure import Figure

from analysis.drawing import STYLE
from orchestrator.results.location import Location

FONTS = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"

CSS = """
:root { color-scheme: light dark; --ink: #1f2430; --soft: #5c6474; --page: #f6f7f9; --card: #ffffff; --line: #dfe2e8;
  --accent: #0b5cad; --warn: #fff6e0; --warn-line: #e0a400; --bad: #b00020; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaf0; --soft: #a4abba; --page: #14161b; --card: #1d2027;
  --line: #343944; --accent: #7db7ff; --warn: #2b2517; --warn-line: #c79a1e; --bad: #ff8a95; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 64px; }
h1 { font-size: 1.75rem; line-height: 1.22; margin: 4px 0 14px; text-wrap: balance; }
h2 { font-size: 1.2rem; margin: 44px 0 10px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 20px 0 6px; }
p, li { max-width: 78ch; } p { margin: 8px 0; }
a { color: var(--accent); }
.kicker, .note, figcaption { color: var(--soft); font-size: .88rem; }
.kicker { margin: 0; letter-spacing: .01em; }
.first { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1.02fr); gap: 28px; align-items: start; }
.answer { padding-left: 0; list-style: none; margin: 0; }
.answer li { padding: 9px 0; border-bottom: 1px solid var(--line); }
.answer li:last-child { border-bottom: 0; }
.answer strong { font-variant-numeric: tabular-nums; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 20px;
  margin: 14px 0; }
figure { margin: 0; min-width: 0; }
.plot { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 8px; max-width: 640px; }
.plot svg { display: block; width: 100%; height: auto; }
figcaption { margin: 6px 2px 0; }
.plot a { cursor: pointer; } .plot a:hover, .plot .point:hover { opacity: .55; }
.box { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; background: var(--card); margin: 12px 0; }
.tall { max-height: 560px; overflow-y: auto; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 11px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { position: sticky; top: 0; background: var(--card); font-weight: 600; color: var(--soft); }
th.text, td.text { text-align: left; } td.wide { white-space: normal; min-width: 22ch; }
tr:last-child td { border-bottom: 0; }
.diverged { color: var(--bad); font-weight: 600; }
.warnings { padding: 0; list-style: none; }
.warnings li { background: var(--warn); border-left: 3px solid var(--warn-line); padding: 8px 12px; margin: 6px 0;
  border-radius: 0 6px 6px 0; font-size: .93rem; max-width: 92ch; overflow-wrap: anywhere; }
.strip { display: flex; gap: 14px; overflow-x: auto; padding: 4px 0 10px; }
.strip figure { flex: 0 0 auto; width: min(480px, 86vw); }
.strip img { width: 100%; height: auto; display: block; border-radius: 6px; border: 1px solid var(--line);
  background: #fff; image-rendering: pixelated; }
pre { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px;
  font-size: .82rem; line-height: 1.45; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .92em; }
nav { margin: 18px 0 0; font-size: .88rem; display: flex; flex-wrap: wrap; gap: 4px 16px; }
@media (max-width: 820px) { .first { grid-template-columns: minmax(0, 1fr); gap: 16px; }
  main { padding: 18px 14px 40px; }
  h1 { font-size: 1.35rem; } h2 { margin-top: 32px; } }
@media print { :root { --page: #fff; --card: #fff; --ink: #000; --soft: #444; } main { max-width: none; padding: 0; }
  .tall { max-height: none; overflow: visible; } .box { overflow: visible; } nav { display: none; }
  figure, tr, .warnings li { break-inside: avoid; } th { position: static; } h2 { break-after: avoid; } }
"""


def page(title: str, body: str) -> str:
    """A whole HTML document."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
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


def table(columns: Sequence[tuple[str, bool]], rows: Sequence[Sequence[str]], *, tall: bool = False) -> str:
    """A table in a box that scrolls by itself. Columns are (title, whether it is text); cells may hold markup."""
    kinds = [' class="text"' if text else "" for _, text in columns]
    head = "".join(
        f'<th scope="col"{kind}>{escape(title)}</th>' for (title, _), kind in zip(columns, kinds, strict=True)
    )
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>\n"
        for row in rows
    )
    box = "box tall" if tall else "box"
    return f'<div class="{box}" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def plot(
    figure: Figure, name: str, alt: str, caption: str = "", point: Callable[[str], tuple[str, str | None]] | None = None
) -> str:
    """A figure as inline SVG. `point` gives the hover text and the link of a point by its id (see `point_link`)."""
    text = f"<figcaption>{caption}</figcaption>" if caption else ""
    drawing = svg(figure, name, point)
    return f'<figure><div class="plot" role="img" aria-label="{escape(alt)}">{drawing}</div>{text}</figure>'


def grid(*figures: str) -> str:
    shown = [figure for figure in figures if figure]
    return '<div class="grid">' + "\n".join(shown) + "</div>" if shown else ""


def point_link(index: object) -> str:
    """The mark under which a plot draws a measured point; `svg` turns it into hover text and a link."""
    return f"point:{index}"


def svg(figure: Figure, name: str, point: Callable[[str], tuple[str, str | None]] | None = None) -> str:
    """SVG text without prologue; ids are prefixed with `name`, for several drawings share one page."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1), count=1
    )
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace("'DejaVu Sans'", FONTS)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)

    def linked(match: re.Match[str]) -> str:
        if point is None:
            return match.group(2)
        words, link = point(match.group(1))
        title = f"<title>{escape(words)}</title>{match.group(2)}"
        if link is None:
            return f'<g class="point">{title}</g>'
        return f'<a href="{escape(link)}" target="_blank" rel="noopener">{title}</a>'

    return re.sub(r'<a xlink:href="point:([^"]*)"[^>]*>(.*?)</a>', linked, text, flags=re.DOTALL)


def picture(path: Location, alt: str, caption: str) -> str:
    """A PNG, embedded."""
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
