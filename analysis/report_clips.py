"""How clips hold together in time, arm beside arm: silent where no clips were trained on."""

from __future__ import annotations

from analysis import report_page as page
from analysis.findings import Findings
from analysis.magnitudes import scientific

SHOWN = {
    "warping_error": "warping error, denoised",
    "warping_error_generated": "warping error, generated",
    "fd_per_frame": "FD of single frames",
}
WORDS = (
    "The warping error is the mean squared difference of frames from the ones before them, moved along the flow: of "
    "validation clips denoised from the middle of time, along their own flow; of generated clips, along flow that is "
    "estimated from them. A grey field has none either: read it beside the loss."
)


def consistency(findings: Findings) -> str:
    """The section: the best run of each budget, arm by arm, with what was measured of its clips."""
    shown = [name for name in SHOWN if name in findings.measurements and findings.measurements[name].notna().any()]
    if not shown:
        return ""
    columns = [("arm", True), ("size", True), ("FLOPs", False), ("loss", False), *((SHOWN[n], False) for n in shown)]
    rows = []
    for arm in findings.arms:
        for run in arm.frontier.to_dict("records"):
            cells = ["" if run[name] is None or run[name] != run[name] else f"{run[name]:.4g}" for name in shown]
            about = [page.escape(arm.arm), page.escape(run["size"]), scientific(run["flops"]), f"{run['loss']:.4g}"]
            rows.append([*about, *cells])
    return page.section("clips", "Consistency in time", page.paragraph(WORDS), page.table(columns, rows))
