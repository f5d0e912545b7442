"""Pictures of what a person sees, made in a real browser:

    python docs/screenshots.py results/quickstart pictures [http://127.0.0.1:5000]

The report on a screen and on a phone, light and dark; `ditlaw status` as a terminal shows it; and, where the address of
an MLflow server is given, the sweep's list of runs and one run's charts. Needs Node, Chromium and what `make browser`
installs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from orchestrator.status import StatusReader
from orchestrator.status_view import status_view

LOOK = Path(__file__).parents[1] / "tests" / "browser" / "look.mjs"


def main(results: Path, out: Path, mlflow: str | None = None) -> None:
    """Write the pictures into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    look("report", results / "report.html", out)
    look("picture", status_page(results, out / "status.html"), out / "status")
    if mlflow is not None:
        look("mlflow", mlflow, json.loads((results / "mlflow.json").read_text())["experiment_id"], out)


def look(*words: object) -> None:
    """Run the browser's script; its failure is this one's."""
    subprocess.run(["node", str(LOOK), *map(str, words)], check=True)


def status_page(results: Path, path: Path) -> Path:
    """The status in the colours of a terminal, as a page."""
    console = Console(width=150, record=True, force_terminal=True, file=sys.stderr)
    console.print(status_view(StatusReader(results).read()), highlight=False)
    path.write_text(console.export_html())
    return path


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:4])
