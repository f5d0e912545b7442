"""How a report's numbers come about again: the spec, versions, commit, seeds and commands."""

from __future__ import annotations

import shlex

from analysis import report_page as page
from analysis.findings import Findings

UNKNOWN = "not kept: the sweep was run before versions were"


def reproduction(findings: Findings, name: str) -> str:
    """The section."""
    spec = str(findings.plan.get("spec") or "").rstrip()
    text = f"<p>The spec, as it was run:</p>{_code(spec)}" if spec else ""
    words = (
        "Running the same command again continues the sweep; nothing that was measured is lost or done twice. All "
        "randomness follows from the seeds and the samples seen: on a CPU a run again gives the same bits."
    )
    return page.section(
        "reproduce", "How to reproduce", _facts(findings), text, _code(_commands(findings, name)), page.paragraph(words)
    )


def _code(text: str) -> str:
    return f'<pre tabindex="0"><code>{page.escape(text)}</code></pre>'


def _commands(findings: Findings, name: str) -> str:
    path = shlex.quote(str(findings.plan.get("spec_path") or f"{name}.yaml"))
    folder = shlex.quote(str(findings.folder))
    commands = [
        f"ditlaw run {path} --results {folder}",
        f"ditlaw report {folder}",
        f"ditlaw fit {folder} --law isoflop",
    ]
    if len(findings.arms) > 1:
        commands[-1] += f" --arm {shlex.quote(findings.arms[0].arm)}"
    return "\n".join(commands)


def _facts(findings: Findings) -> str:
    """Versions, commit, plan and seeds, as a table of names and values."""
    about, rows = findings.environment, findings.measurements
    versions = about.get("versions")
    listed = ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, dict) else UNKNOWN
    facts = {
        "versions": listed,
        "commit": str(about.get("commit") or (UNKNOWN if not about else "none: not run from a checkout")),
        "digest of the code": str(about.get("code") or UNKNOWN),
        "machine of the driver": str(about.get("platform") or UNKNOWN),
        "digest of the plan": str(findings.plan.get("digest") or "no plan.json"),
        "seeds": ", ".join(map(str, sorted(rows["seed"].unique()))) if len(rows) else "none yet",
        "FLOPs are counted as": ", ".join(sorted(rows["flops_definition"].unique())) if len(rows) else "",
        "schema of the table": ", ".join(map(str, sorted(rows["schema_version"].unique()))) if len(rows) else "",
    }
    cells = [[page.escape(name), f"<code>{page.escape(value)}</code>"] for name, value in facts.items() if value]
    return page.table([("what", True), ("value", True)], cells, wide=True)
