"""The methods of a sweep in words: one text, as HTML for the report and as LaTeX for a paper's appendix.

The text holds `[key]` for a citation, `$...$` for mathematics, and `**...**` for the word that begins a paragraph.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.findings import Findings
from analysis.magnitudes import scientific, with_unit
from analysis.references import REFERENCES, bibliography
from analysis.report_page import escape

OBJECTIVES = {
    "rectified-flow": "liu2023",
    "interpolant": "ma2024",
    "ddpm": "ho2020",
    "v-prediction": "salimans2022",
    "x-prediction": "salimans2022",
    "x-prediction-velocity-loss": "li2025",
    "edm": "karras2022",
    "masked-tokens": "chang2022",
    "pyramid-flow": "jin2024",
}
"""By the first word of an objective's label; its options follow it."""
FAMILIES = {
    "dit": "peebles2023",
    "unet": "dhariwal2021",
    "mmdit": "esser2024",
    "flux": "labs2025",
    "uvit": "bao2023",
    "masked": "chang2022",
    "jit": "li2025",
    "video-dit": "maxin2024",
    "unet3d": "ho2022",
}
PARAMETERIZATIONS = {"mup": "yang2022", "completep": "dey2025"}

FIXED = (
    "**Compute.** Training FLOPs are $3 \\times$ forward FLOPs $\\times$ samples, with a multiply-add counted as 2, in "
    "closed form. $N$ is the number of the backbone's parameters, without embedding tables; $D$ the samples seen.",
    "**IsoFLOP minima.** At each budget a parabola in $\\log N$ is fitted through the losses within 35% of the lowest "
    "(of four sizes at least). Minima outside these sizes are not used. $N^{*}(C)$ and $D^{*}(C)$ are power laws "
    "through the minima [hoffmann2022]; cubics through all sizes, the best run of each budget, and the surface "
    "$L = E + A/N^{\\alpha} + B/D^{\\beta}$ stand beside them.",
    "**Estimation.** Laws minimise the summed Huber loss ($\\delta = 10^{-3}$) of log residuals, started from variable "
    "projection over the exponents [golub1973], with analytic derivatives [hoffmann2022; besiroglu2024]. A floor is "
    "reported only if a law without one fits worse at the 5% level and its interval stays above 0.",
    "**Intervals** are 95% percentiles of a bootstrap over trials, since milestones of one trial are not independent; "
    "where trials are few, of a bootstrap that exchanges the residuals of whole trials, widened for the degrees of "
    "freedom used, and where every run is one point, of its profile likelihood, with predictions by the delta method. "
    "They hold what the noise of the runs does to a fit, not what a wrong functional form does far outside the budgets "
    "run.",
    "**Arms.** The best runs of two arms are fitted together by least squares of log residuals, with one floor; the "
    "compute multiplier is the FLOPs one arm needs over those of the other to equal loss. Its interval exchanges "
    "residuals of both arms at once where they share their budgets. Equal exponents and equal laws are F tests "
    "[seber1989].",
    "**Divergence.** Diverged trials stay in every table and are marked in the figures; laws are fitted to the others. "
    "Where only a diverged size bounds the best size of a budget, it enters the parabola at the worst loss there.",
)


def paragraphs(findings: Findings) -> list[str]:
    """What was trained and measured, then how it was fitted."""
    rows = findings.measurements
    return ([*_trained(findings), *_measured(findings)] if len(rows) else []) + list(FIXED)


def _trained(findings: Findings) -> list[str]:
    rows = findings.measurements
    families = " and ".join(
        f"{name.upper() if name == 'dit' else name}{_cite(FAMILIES.get(name))}" for name in _distinct(rows["family"])
    )
    tables = " and ".join(
        f"{name}{_cite(PARAMETERIZATIONS.get(name.lower()))}" for name in _distinct(rows["parameterization"])
    )
    objectives = " and ".join(
        f"{name}{_cite(OBJECTIVES.get(name.partition(' ')[0]))}" for name in _distinct(rows["objective"])
    )
    sizes, budgets = rows["params"], rows["budget_flops"].dropna()  # none where budgets are samples
    at = (
        ""
        if budgets.empty
        else f" at {budgets.nunique()} budgets from {scientific(budgets.min())} to {scientific(budgets.max())} FLOPs"
    )
    dataset = findings.plan.get("dataset")
    data = f" on {dataset}" if dataset else ""
    stages = " and ".join(f"ZeRO-{stage}" for stage in sorted(rows["zero_stage"].unique()))
    return [
        f"**Training.** {rows['trial_id'].nunique()} trials of {rows['params'].nunique()} sizes of {families}, from "
        f"{with_unit(sizes.min())} to {with_unit(sizes.max())} parameters, were trained{data}{at}, "
        f"under the parameterizations {tables} and the objectives {objectives}, with batches of "
        f"{_list(rows['batch_size'])} samples, base learning rates {_list(rows['learning_rate'])}, seeds "
        f"{_list(rows['seed'])}, in {', '.join(_distinct(rows['precision']))} with {stages} [rajbhandari2020], "
        "scheduled by ditlaw on Ray [moritz2018]." + _optimized(_recipes(findings))
    ]


def _recipes(findings: Findings) -> list[dict[str, Any]]:
    """As the plan keeps them; none in plans from before it did."""
    kept = findings.plan.get("recipes")
    return [recipe for recipe in kept if isinstance(recipe, dict)] if isinstance(kept, list) else []


def _optimized(recipes: list[dict[str, Any]]) -> str:
    """Optimizer and schedule in a sentence each; where recipes differ, every value."""
    if not recipes:
        return ""
    betas = " or ".join(dict.fromkeys(" and ".join(f"{beta:g}" for beta in r["betas"]) for r in recipes))
    clips = _values(recipes, "gradient_clip")
    clipped = f", gradients clipped to a norm of {clips}" if clips else ""
    schedules = {
        "constant": "then held constant",
        "wsd": "then held constant up to a cooldown to zero, branched off at each budget [hagele2024]",
    }
    held = " or ".join(dict.fromkeys(schedules.get(str(r["schedule"]), str(r["schedule"])) for r in recipes))
    return (
        f" The optimizer was AdamW [loshchilov2019] with $\\beta$ = {betas}, $\\epsilon$ = {_values(recipes, 'eps')}, "
        f"weight decay {_values(recipes, 'weight_decay')}{clipped}. Learning rates were warmed up linearly over "
        f"{_values(recipes, 'warmup_samples')} samples and {held}."
    )


def _values(recipes: list[dict[str, Any]], name: str) -> str:
    return _list(pd.Series([recipe[name] for recipe in recipes if recipe[name] is not None], dtype=float))


def _measured(findings: Findings) -> list[str]:
    rows = findings.measurements
    recipes = _recipes(findings)
    length = f" of relative standard deviation {_values(recipes, 'ema_relative_std')}" if recipes else ""
    draws = (
        f" ({_values(recipes, 'loss_images')} samples, {_values(recipes, 'loss_draws')} of times and noise for each)"
        if recipes
        else ""
    )
    text = (
        f"**Measurement.** The loss is that of the exponential moving average of the weights [karras2024]{length} on "
        f"fixed validation draws{draws}: the same samples, times and noise for every trial."
    )
    names = sorted({arm.distance.name for arm in findings.arms if arm.distance is not None})
    if names:
        known = rows.dropna(subset="sampler").drop_duplicates(["sampler", "sampler_steps", "guidance", "eval_samples"])
        how = "; ".join(
            f"{row['eval_samples']:,.0f} samples by {row['sampler']} in {row['sampler_steps']:.0f} steps, guidance "
            f"{row['guidance']:g}"
            for row in known.head(4).to_dict("records")
        )
        text += f" {' and '.join(names)} is the Fréchet distance [heusel2017]{' of ' + how if how else ''}."
    return [text]


def _distinct(values: pd.Series) -> list[str]:
    return list(dict.fromkeys(str(value) for value in values))


def _list(values: pd.Series) -> str:
    distinct = sorted(set(values))
    if not distinct:
        return ""
    if len(distinct) > 5:
        return f"from {distinct[0]:g} to {distinct[-1]:g} ({len(distinct)})"
    return ", ".join(f"{value:g}" for value in distinct)


def _cite(key: str | None) -> str:
    return f" [{key}]" if key else ""


CITATION = re.compile(r"\[([a-z]+\d{4}(?:; [a-z]+\d{4})*)\]")


def cited(texts: Sequence[str]) -> list[str]:
    """The keys of the works cited, in their order."""
    return list(dict.fromkeys(key for text in texts for keys in CITATION.findall(text) for key in keys.split("; ")))


def as_html(texts: Sequence[str]) -> str:
    """The text with linked citations, and the list of works."""
    body = "".join(f"<p>{_html(text)}</p>\n" for text in texts)
    works = "".join(
        f'<li id="ref-{key}">{escape(REFERENCES[key].short)}. {escape(REFERENCES[key].title)}. '
        f'<a href="{escape(REFERENCES[key].address)}">{escape(REFERENCES[key].address.partition("//")[2])}</a></li>'
        for key in cited(texts)
    )
    return f"{body}<h3>Works cited</h3><ol>{works}</ol>"


def _html(text: str) -> str:
    text = re.sub(r"\$(.+?)\$", lambda match: _html_math(match[1]), escape(text))
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text)
    return CITATION.sub(
        lambda match: (
            "("
            + "; ".join(f'<a href="#ref-{key}">{escape(REFERENCES[key].short)}</a>' for key in match[1].split("; "))
            + ")"
        ),
        text,
    )


SIGNS = {"times": "×", "alpha": "α", "beta": "β", "delta": "δ", "epsilon": "ε", "log": "log "}


def _html_math(formula: str) -> str:
    for name, sign in (
        ("times", "×"),
        ("alpha", "α"),
        ("beta", "β"),
        ("delta", "δ"),
        ("epsilon", "ε"),
        ("log", "log "),
    ):
        formula = re.sub(rf"\\{name}\b ?", sign, formula)
    return re.sub(r"\^\{(.+?)\}", r"<sup>\1</sup>", formula).replace("-", "−")


def as_latex(texts: Sequence[str]) -> str:
    """The text for an appendix, to go with `bibliography`."""
    return "\n".join(f"{_latex(text)}\n" for text in texts)


SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def _latex(text: str) -> str:
    text = text.replace("%", r"\%").replace("&", r"\&").replace("_", r"\_")
    power = r"(?:([\d.]+)×)?10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)"

    def magnitude(match: re.Match[str]) -> str:
        factor = rf"{match[1]} \times " if match[1] else ""
        return f"${factor}10^{{{match[2].translate(SUPERSCRIPTS)}}}$"

    text = re.sub(power, magnitude, text)
    text = re.sub(r"\*\*(.+?)\*\*", r"\\paragraph{\1}", text)
    return CITATION.sub(lambda match: rf"\citep{{{match[1].replace('; ', ', ')}}}", text)


def bibtex(texts: Sequence[str]) -> str:
    """The BibTeX file of the works that the text cites."""
    return bibliography(cited(texts))
