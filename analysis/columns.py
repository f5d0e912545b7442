"""Which column of a table holds which quantity, by its name; and why none does."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

import pandas as pd

from analysis.magnitudes import numbers_of, scale_of

SCALE = ("params", "samples", "flops")
QUANTITIES = (*SCALE, "loss", "sd")
"""What `--columns` names. `loss` is whatever is fitted: a loss, or a Frechet distance; `sd` is its standard deviation,
and is read only where it is named."""

NAMES: dict[str, tuple[str, ...]] = {
    "params": (
        "params",
        "params_backbone",
        "params_total",
        "parameters",
        "num_params",
        "n_params",
        "num_parameters",
        "n_parameters",
        "param_count",
        "parameter_count",
        "params_count",
        "nparams",
        "non_embedding_params",
        "total_params",
        "model_size",
        "model_params",
        "model_parameters",
        "n",
        "size",
    ),
    "samples": (
        "samples",
        "tokens",
        "samples_seen",
        "num_samples",
        "n_samples",
        "images",
        "images_seen",
        "num_tokens",
        "n_tokens",
        "tokens_seen",
        "train_tokens",
        "training_tokens",
        "training_samples",
        "dataset_size",
        "d",
        "data",
    ),
    "flops": (
        "flops",
        "training_flops",
        "training_flop",
        "train_flops",
        "compute",
        "training_compute",
        "train_compute",
        "total_flops",
        "num_flops",
        "flop",
        "c",
    ),
    "loss": (
        "loss",
        "val_loss",
        "validation_loss",
        "valid_loss",
        "eval_loss",
        "test_loss",
        "final_loss",
        "final_val_loss",
        "loss_val",
        "l",
    ),
    "fid": ("fid", "fid_50k", "fid50k", "fid_10k", "fid10k", "fid_5k", "fid5k", "final_fid", "val_fid"),
    "fd": ("fd", "fd_dino", "fd_dinov2", "fd_clip", "frechet_distance"),
}
"""Names tried in turn where a column is not given, in the form that `plain` gives them."""

CHOICES = ("loss", "fid", "fd")
"""What a law may be fitted to, in the order in which they are looked for."""

_UNIT = re.compile(r"^(?P<base>.*\S)\s*[(\[](?:in\s+)?(?P<unit>[^)\]]+)[)\]]$")
_SUFFIX = re.compile(r"^(?P<base>.{3,}?)[_ ](?:in[_ ])?(?P<unit>k|m|b|t|thousands?|millions?|billions?|trillions?)$")


def plain(name: str) -> str:
    """A column's name in lower case, with anything but letters and digits as one underscore."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def without_unit(name: str) -> tuple[str, float]:
    """The plain name and what one unit of the column stands for: `Params (M)` is (`params`, 1e6).

    A unit stands in brackets, or after an underscore where the rest is a known name (`tokens_b`). A number in brackets
    is a unit too: `flops (1e18)`.
    """
    bracketed = _UNIT.match(name.strip())
    if bracketed:
        scale = scale_of(bracketed["unit"])
        if scale is None:
            try:
                scale = float(bracketed["unit"])
            except ValueError:
                scale = 1.0
        return plain(bracketed["base"]), scale
    suffixed = _SUFFIX.match(plain(name))
    if suffixed and any(suffixed["base"] in names for names in NAMES.values()):
        return suffixed["base"], scale_of(suffixed["unit"].rstrip("s")) or 1.0
    return plain(name), 1.0


def find_columns(
    frame: pd.DataFrame, columns: Mapping[str, str] | None, quantity: str | None
) -> tuple[dict[str, str], str]:
    """Which column holds each of params, samples, flops, loss: as given, else by name; and what `loss` is.

    `quantity` is loss, fid or fd; None takes the first of them that the table has.

    Raises:
        ValueError: `columns` names what is no quantity or no column.
    """
    present = [str(name) for name in frame.columns]
    found = _given(columns, present)
    if quantity is None:
        given = found.get("loss")
        like = without_unit(given)[0] if given else None
        quantity = next((q for q in CHOICES if like in NAMES[q]), "loss") if given else None
    by_name: dict[str, str] = {}
    by_end: dict[str, str] = {}
    for name in present:
        by_name.setdefault(without_unit(name)[0], name)
        if (end := _end(name)) is not None:
            by_end.setdefault(end, name)
    choices = CHOICES if quantity is None else (quantity,)
    for names in (by_name, by_end):  # whole names before the ends of names with a path
        for wanted in SCALE:
            _guess(frame, wanted, wanted, names, found)
        for choice in choices:
            if "loss" not in found and _guess(frame, "loss", choice, names, found):
                quantity = choice
    return found, quantity or "loss"


def _end(name: str) -> str | None:
    """The last part of a name with a path, as `params` of `config.params`; None of others, and of `train/loss`: what is
    fitted is never guessed to be a loss in training."""
    *path, last = re.split(r"[/.]", name)
    end = without_unit(last)[0]
    is_trained = any("train" in part.lower() for part in path) and "loss" in end
    return end if path and not is_trained else None


def _given(columns: Mapping[str, str] | None, present: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for quantity, name in (columns or {}).items():
        if quantity not in QUANTITIES:
            nearest = difflib.get_close_matches(quantity, QUANTITIES, n=1)
            hint = f" Did you mean {nearest[0]}?" if nearest else ""
            raise ValueError(f"columns names {quantity!r}; the quantities are {', '.join(QUANTITIES)}.{hint}")
        if name not in present:
            raise ValueError(no_column(f"column {name!r} (for {quantity})", (name,), present))
        if name in found.values():
            other = next(q for q, n in found.items() if n == name)
            raise ValueError(f"columns gives {name!r} for both {other} and {quantity}; each needs its own.")
        found[quantity] = name
    return found


def _guess(frame: pd.DataFrame, key: str, choice: str, by_name: Mapping[str, str], found: dict[str, str]) -> bool:
    """Note the first column of a known name that holds a number; a column `size` of names is not the parameters."""
    if key in found:
        return True
    for name in NAMES[choice]:
        column = by_name.get(name)
        if column is not None and column not in found.values() and numbers_of(frame[column])[0].notna().any():
            found[key] = column
            return True
    return False


def others_like(found: Mapping[str, str], frame: pd.DataFrame, quantity: str) -> list[str]:
    """For each scale quantity the further columns that could have served, as sentences."""
    sentences = []
    for key in SCALE:
        names = [n for n in map(str, frame.columns) if without_unit(n)[0] in NAMES[key] and n != found.get(key)]
        names = [n for n in names if n not in found.values() and numbers_of(frame[n])[0].notna().any()]
        if key in found and names:
            sentences.append(f"{key} read from column {found[key]!r}; there is also {', '.join(map(repr, names))}")
    return sentences


def missing_columns(missing: list[str], choice: str, frame: pd.DataFrame, used: Mapping[str, str]) -> str:
    """Why no column serves for some quantities: which columns there are, those of no numbers, and the nearest names;
    and what to do."""
    logs = [str(name) for name in frame.columns if re.match(r"(log|ln)[0-9]*[_ (]", str(name).lower())]
    empty = [text for q in missing if (text := without_numbers(q, choice, frame))]
    if empty:
        return f"{' '.join(empty)} Write plain numbers there, as 2.5, 1.3e9 or 1.3B."
    named = f"Say which it is with --columns {','.join(f'{q}=NAME' for q in missing)}."
    names = [choice if q == "loss" else q for q in missing]
    alone = len(names) == 1
    known = {name: NAMES.get(name, (name,)) for name in names}
    tried = "; ".join(f"{'' if alone else name + ': '}{', '.join(known[name][:6])}, ..." for name in names)
    wanted = tuple(name for key in names for name in known[key])
    spare = [str(name) for name in frame.columns if name not in used.values()]
    what = f"column for {' or '.join(names)} (tried {tried})"
    if logs:
        named = f"Logarithms ({', '.join(logs[:4])}) are not read: write the numbers themselves. {named}"
    return f"{no_column(what, wanted, list(map(str, frame.columns)), spare)} {named}"


def without_numbers(quantity: str, choice: str, frame: pd.DataFrame) -> str | None:
    """That the column of a known name holds no numbers; None where there is no such column."""
    by_name = {without_unit(str(name))[0]: str(name) for name in frame.columns}
    names = NAMES.get(choice if quantity == "loss" else quantity, (quantity,))
    for name in names:
        if name in by_name and len(frame):
            value = frame[by_name[name]].iloc[0]
            if numbers_of(frame[by_name[name]])[0].isna().all():
                return f"column {by_name[name]!r} holds no numbers (first: {value}); wanted those of {quantity}."
    return None


def no_column(what: str, wanted: tuple[str, ...], present: list[str], spare: list[str] | None = None) -> str:
    """That a column is missing: which there are, and the one of `spare` (default: all) nearest in name."""
    plainly = {plain(name): name for name in (present if spare is None else spare)}
    scored = [
        (difflib.SequenceMatcher(None, plain(name), near).ratio(), near)
        for name in wanted
        if len(name) > 2 or name in present
        for near in difflib.get_close_matches(plain(name), list(plainly), n=1, cutoff=0.6)
    ]
    hint = f" The nearest name is {plainly[max(scored)[1]]!r}." if scored else ""
    return f"the table has no {what}. It has: {', '.join(present) or 'no columns'}.{hint}"
