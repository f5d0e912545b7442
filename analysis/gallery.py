"""The figures of a report: each on its page, and written beside it for a paper."""

from __future__ import annotations

import io

import matplotlib
from matplotlib.figure import Figure

from analysis.drawing import STYLE
from analysis.report_page import Drawing, plot
from orchestrator.results.atomic import write_bytes
from orchestrator.results.location import Location


class Gallery:
    """Figures by name, as they are shown."""

    def __init__(self) -> None:
        self._shown: dict[str, tuple[Figure, Drawing]] = {}

    def show(self, figure: Figure, name: str, alt: str, caption: str = "") -> str:
        """The figure as HTML. `alt` says in words what can be seen; `caption` may hold markup."""
        drawing = Drawing.of(figure, name)
        self._shown[name] = figure, drawing
        return plot(drawing, name, alt, caption)

    def write(self, folder: Location, *, pdf: bool) -> None:
        """Write every figure shown as SVG, and as PDF where wanted; the same figure is the same file."""
        for name, (figure, drawing) in self._shown.items():
            write_bytes(folder / f"{name}.svg", drawing.svg.encode())
            if pdf:
                buffer = io.BytesIO()
                with matplotlib.rc_context(STYLE):
                    figure.savefig(buffer, format="pdf", metadata={"CreationDate": None})
                write_bytes(folder / f"{name}.pdf", buffer.getvalue())
