"""Identity: equal for what gives the same result, different for what does not, refused for what is unstable."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.config import SP, MuP
from orchestrator.planning.plan import make
from orchestrator.spec.identity import canonical_json, digest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=5))
def test_key_order_does_not_matter(value):
    assert digest(value) == digest(dict(reversed(list(value.items()))))


@given(JSON)
def test_the_text_is_plain_json(value):
    plain = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert canonical_json(value) == plain


def test_what_is_kept_with_an_object_is_its_own():
    @dataclasses.dataclass
    class Loose:
        x: int = 1

    loose = Loose()
    assert canonical_json(loose) == '{"":"Loose","x":1}'
    loose.x = 2
    assert canonical_json(loose) == '{"":"Loose","x":2}'
    one = MuP(base_width=8)
    assert canonical_json(one) == canonical_json(one) == '{"":"MuP","base_width":8,"name":"mup"}'
    assert canonical_json(dataclasses.replace(one, base_width=9)) == '{"":"MuP","base_width":9,"name":"mup"}'


def test_alternatives_with_the_same_fields_differ():
    @dataclasses.dataclass
    class Other:
        name: str = "sp"

    assert digest(SP()) != digest(Other())


@pytest.mark.parametrize("value", [math.nan, math.inf, {1: 2}, {1, 2}, b"x", object()])
def test_what_has_no_stable_text_is_refused(value):
    with pytest.raises((TypeError, ValueError), match="an identity cannot hold"):
        canonical_json({"x": value})


def test_trial_id_is_pinned():
    """The stored results of every sweep depend on this: if it changes, all of them are trained again."""
    ids = {trial.name: trial.trial_id for trial in make(Path("sweeps/smoke.yaml")).trials}
    assert ids["sp w8 lr 0.008"] == "46d7e0cd0d973c38"


def test_only_what_determines_the_result_is_in_it():
    trial = make(Path("sweeps/smoke.yaml")).trials[0]
    same = dataclasses.replace(
        trial, sweep="x", arm="y", size="z", milestones=(320,), budgets=(None,), num_workers=2, params_total=1
    )
    assert same.trial_id == trial.trial_id
    for change in (
        {"seed": 1},
        {"parameterization": MuP(base_width=99)},
        {"batch_size": 16},
        {"zero_stage": 1},
        {"optimizer": dataclasses.replace(trial.optimizer, learning_rate=0.5)},
        {"evaluation": dataclasses.replace(trial.evaluation, loss_images=1)},
        {"model": dataclasses.replace(trial.model, depth=9)},
    ):
        assert dataclasses.replace(trial, **change).trial_id != trial.trial_id, change
