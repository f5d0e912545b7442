"""The object of `fit --json` as people read it: a page for a terminal, and a table for a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import Any

MOST_LISTED = 8


def format_fit(result: Mapping[str, Any]) -> str:
    """The result as a short page for a terminal."""
    lines = [
        _equation(result),
        f"{result['num_points']} points, {result['outcome'].replace('_', ' ')}" + _agree(result),
        "",
        *_rows(result["params"], result["ci95"]),
    ]
    if result["law"] == "power":
        lines.append("  floor identified: " + ("yes" if result["floor_identified"] else "no"))
    lines += _allocation(result)
    lines += _minima(result)
    lines += _belief(result)
    lines += _trials(result)
    if result["warnings"]:
        lines += [""] + [f"! {warning}" for warning in result["warnings"]]
    return "\n".join(lines)


def _equation(result: Mapping[str, Any]) -> str:
    """The law, with what was fitted in the place of y or L."""
    left, equals, right = result["equation"].partition(" = ")
    return f"{result['quantity'] if left in ('y', 'L') else left}{equals}{right}"


def _agree(result: Mapping[str, Any]) -> str:
    share = result["starts_agree"]
    return "" if share is None else f", {share:.0%} of starts agree"


def _rows(values: Mapping[str, float | None], ci95: Mapping[str, Any]) -> list[str]:
    width = max(len(name) for name in values)
    return [f"  {name:<{width}}  {_number(value):>10}" + _band(ci95.get(name)) for name, value in values.items()]


def _band(band: Any) -> str:
    return f"  95% {_number(band[0])} to {_number(band[1])}" if band else ""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _allocation(result: Mapping[str, Any]) -> list[str]:
    """N*, D* and the loss at the target, each prediction with what the back-test missed it by."""
    allocation = result["allocation"]
    wanted = ("N_exponent", "D_exponent", "params", "samples", "samples_per_param", "loss")
    names = [n for n in wanted if allocation.get(n) is not None]
    if not names or (result["law"] == "isoflop" and "flops" not in allocation):
        return []
    at = ""
    if "flops" in allocation:
        at = f" at {allocation['flops']:.4g} FLOPs ({allocation['times_largest_budget']:.3g} x the largest budget)"
    rows = _rows({n: allocation[n] for n in names}, allocation["ci95"])
    errors = allocation.get("backtest_error", {})
    errors = {"params": errors.get("params"), "samples": errors.get("params"), "loss": errors.get("loss")}
    for k, name in enumerate(names):
        if "flops" in allocation and name in errors:
            missed = errors[name]
            what = "N* " if name == "samples" else ""
            rows[k] += f"  back-test {what}{missed:+.1%}" if missed is not None else "  no back-test"
    return ["", f"compute-optimal{at}", *rows]


def _minima(result: Mapping[str, Any]) -> list[str]:
    if result.get("optima"):
        return ["", f"  {result['variable']:>10}  {'best rate':>10}"] + [
            f"  {o['scale']:>10.4g}  {_number(o['rate']):>10}{_band(o['rate_ci95'])}"
            + ("" if o["bracketed"] else "  not bracketed")
            for o in result["optima"]
        ]
    if not result.get("minima"):
        return []
    return ["", f"  {'budget':>10}  {'N*':>10}  {'loss':>10}"] + [
        f"  {m['flops']:>10.4g}  {_number(m['params']):>10}  {_number(m['loss']):>10}"
        + ("" if m["bracketed"] else "  not bracketed")
        for m in result["minima"]
    ]


def _belief(result: Mapping[str, Any]) -> list[str]:
    """How far to believe it: the approaches side by side, back-tests, influence."""
    lines = []
    if result["approaches"]:
        agree = {True: "agree", False: "DISAGREE", None: "cannot be compared"}[result["approaches_agree"]]
        lines.append(f"  N* exponent by each approach ({agree}):")
        for a in result["approaches"]:
            doubt = "" if a["outcome"] == "converged" else f"  ({a['outcome'].replace('_', ' ')})"
            lines.append(f"    {a['name']:<14}{_number(a['N_exponent']):>8}{_band(a['ci95'])}{doubt}")
    for t in result["backtest"]:
        band = f" (95% {_number(t['ci95'][0])} to {_number(t['ci95'][1])})" if t["ci95"] else ""
        lines.append(
            f"  back-test, largest budget left out: {t['what']} {_number(t['predicted'])}{band} predicted, "
            f"{_number(t['observed'])} found ({t['error']:+.1%})"
        )
    for i in result["influence"]:
        text = f"  influence: {i['exponent']} is {_number(i['without'])} without {i['trial']} ({i['change']:+.2g})"
        if i["pair"]:
            text += f", {_number(i['pair_without'])} without {' and '.join(i['pair'])} ({i['pair_change']:+.2g})"
        lines.append(text)
    return ["", *lines] if lines else []


def _trials(result: Mapping[str, Any]) -> list[str]:
    """What happened to the rows: how many diverged or ended early, and which diverged."""
    counts = result["trials"]
    if not counts["diverged"] and not counts["censored"]:
        return []
    lines = ["", "  rows: " + ", ".join(f"{count} {name}" for name, count in counts.items())]
    for row in result["diverged"][:MOST_LISTED]:
        about = ", ".join(f"{name} {_entry(value)}" for name, value in row.items() if value is not None)
        lines.append(f"    diverged: {about}")
    more = len(result["diverged"]) - MOST_LISTED
    return lines + ([f"    and {more} more (--json lists them)"] if more > 0 else [])


def _entry(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def html_fit(result: Mapping[str, Any]) -> str:
    """The result for a notebook: parameters with intervals, then everything else of the page."""
    return "".join(_html(result))


def _html(result: Mapping[str, Any]) -> Iterator[str]:
    equation = html.escape(_equation(result))
    yield f"<div><p><b>{equation}</b><br>{result['num_points']} points, {result['outcome'].replace('_', ' ')}"
    yield f"{html.escape(_agree(result))}</p><table>"
    yield "<thead><tr><th></th><th>estimate</th><th>95%</th></tr></thead><tbody>"
    for name, value in result["params"].items():
        band = result["ci95"].get(name)
        words = f"{_number(band[0])} to {_number(band[1])}" if band else ""
        yield f"<tr><th>{html.escape(name)}</th><td>{_number(value)}</td><td>{words}</td></tr>"
    yield "</tbody></table>"
    rest = [*_allocation(result), *_minima(result), *_belief(result), *_trials(result)]
    if rest:
        yield f"<pre>{html.escape(chr(10).join(rest).strip(chr(10)))}</pre>"
    if result["warnings"]:
        yield "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in result["warnings"]) + "</ul>"
    yield "</div>"
