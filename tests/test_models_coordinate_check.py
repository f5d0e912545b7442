"""Activations follow neither the width under µP nor the depth under CompleteP, and do where they should."""

from __future__ import annotations

import functools
import json
import math

import pytest
from click.testing import CliRunner

from models.coordinate_check import (
    Protocol,
    Reading,
    Slope,
    check,
    is_flat,
    parameterization_named,
    slopes,
    steepest,
)
from orchestrator.cli import main

WIDTHS, DEPTHS = (32, 64, 128, 256), (2, 4, 8, 16)


@functools.cache
def over_widths(name: str, zero_init: bool = True) -> tuple[Slope, ...]:
    parameterization = parameterization_named(name, base_width=32, base_depth=2)
    protocol = Protocol(seeds=16, zero_init=zero_init, head_dim=16)
    return tuple(slopes(check("width", WIDTHS, 2, parameterization, protocol)))


@functools.cache
def over_depths(name: str, zero_init: bool = True) -> tuple[Slope, ...]:
    parameterization = parameterization_named(name, base_width=32, base_depth=2)
    protocol = Protocol(depth_seeds=3, zero_init=zero_init, head_dim=16)
    return tuple(slopes(check("depth", DEPTHS, 32, parameterization, protocol)))


def slope_of(found: tuple[Slope, ...], layer: str, measure: str, step: int = 4) -> float:
    return next(s.slope for s in found if (s.layer, s.measure, s.step) == (layer, measure, step))


@pytest.mark.parametrize("zero_init", [True, False])
def test_mup_is_flat_over_widths(zero_init: bool) -> None:
    """At widths this small, a slope has several hundredths of finite-width error; 64 to 1024 stay within 0.05."""
    found = over_widths("mup", zero_init)
    assert {"output", "blocks.0.attn", "blocks.last.mlp", "blocks.last", "final_layer.adaLN_modulation"} <= {
        s.layer for s in found
    }
    assert abs(steepest(found).slope) < 0.1, steepest(found)
    assert abs(slope_of(found, "output", "size")) < 0.05
    assert abs(slope_of(found, "blocks.last", "change")) < 0.1


@pytest.mark.slow
def test_mup_is_flat_within_a_twentieth_over_widths_64_to_1024() -> None:
    parameterization = parameterization_named("mup", base_width=64, base_depth=2)
    found = slopes(check("width", (64, 128, 256, 512, 1024), 2, parameterization, Protocol(seeds=16)))
    assert {s.step for s in found} >= {1, 2, 3, 4}
    assert {round(s.slope, 3) for s in found if s.measure == "size" and abs(s.slope) >= 0.05} == set()


def test_sp_is_not_flat_over_widths() -> None:
    found = over_widths("sp")
    assert not is_flat(found)
    # The first Adam step moves all `width` weights of a readout row together: its output grows as the width.
    assert slope_of(found, "output", "size", step=1) == pytest.approx(1.0, abs=0.15)


def test_completep_is_flat_over_depths_and_mup_is_not() -> None:
    completep, mup = over_depths("completep"), over_depths("mup")
    assert abs(steepest(completep).slope) < 0.1, steepest(completep)
    assert abs(slope_of(completep, "blocks.last", "change")) < 0.15
    # Without the multiplier L blocks that all learn move the stream L times as far.
    assert slope_of(mup, "blocks.last", "change") > 0.7
    assert not is_flat(mup)
    # SP's sizes are those of the draw at so small a rate; its last stream tells.
    assert slope_of(over_depths("sp"), "blocks.last", "change") > 0.5
    assert not is_flat(over_depths("sp"))


def test_the_epsilon_that_follows_the_gradients_keeps_wide_models_learning() -> None:
    """With an epsilon far above usual, µP moves its hidden layers alike at all widths still: it goes with 1/m."""
    parameterization = parameterization_named("mup", base_width=32, base_depth=2)
    protocol = Protocol(seeds=8, head_dim=16, eps=1e-6, steps=3)
    found = tuple(slopes(check("width", (32, 128), 2, parameterization, protocol)))
    assert abs(slope_of(found, "blocks.0.attn", "change", step=3)) < 0.2


def planted(exponent: float, change: float = 0.0) -> list[Reading]:
    return [Reading(layer="output", step=1, extent=n, size=3.0 * n**exponent, change=n**change) for n in (2, 4, 16)]


def test_a_planted_slope_is_found() -> None:
    found = slopes(planted(0.3, -1.0))
    assert steepest(found).slope == pytest.approx(0.3)
    assert steepest(found, "change").slope == pytest.approx(-1.0)
    assert not is_flat(found)
    assert is_flat(slopes(planted(0.04)))
    assert not is_flat(slopes(planted(-0.06)))
    assert not is_flat(slopes(planted(0.0, 0.5)))


def test_zeros_and_layers_of_some_models_have_no_slope_and_what_is_not_finite_is_not_flat() -> None:
    zero = Reading(layer="zero", step=1, extent=4, size=0.0, change=0.0)
    lone = Reading(layer="lone", step=1, extent=4, size=1.0, change=1.0)
    start = [Reading(layer="zero", step=1, extent=n, size=1.0, change=1.0) for n in (2, 16)]
    assert {s.layer for s in slopes([*planted(0.0), *start, zero, lone])} == {"output"}
    broken = [*planted(0.0)[:2], Reading(layer="output", step=1, extent=16, size=math.nan, change=1.0)]
    assert math.isnan(steepest(slopes(broken)).slope)
    assert not is_flat(slopes(broken))


def test_a_change_counts_from_initialisation() -> None:
    readings = check("width", (32, 64), 1, parameterization_named("mup", base_width=32, base_depth=1), FAST)
    assert {r.step for r in readings} == {0, 1}
    assert {r.change for r in readings if r.step == 0} == {0.0}
    assert all(r.change == r.size > 0 for r in readings if (r.layer, r.step) == ("output", 1)), (
        "the readout starts at 0"
    )


FAST = Protocol(steps=1, seeds=1, depth_seeds=1)


def test_what_cannot_be_checked_is_refused() -> None:
    mup = parameterization_named("mup", base_width=32, base_depth=1)
    with pytest.raises(ValueError, match=r"a slope needs two widths; got \[64, 64\]"):
        check("width", [64, 64], 1, mup, FAST)
    with pytest.raises(ValueError, match="width 48 is not a multiple of the head size 32"):
        check("width", [32, 48], 1, mup, FAST)
    with pytest.raises(ValueError, match="'ntk' is not known; wanted one of sp, mup, completep"):
        parameterization_named("ntk", base_width=1, base_depth=1)
    with pytest.raises(ValueError, match="steps is 0; wanted at least 1"):
        Protocol(steps=0)
    with pytest.raises(ValueError, match="learning_rate is 0; wanted above 0"):
        Protocol(learning_rate=0)


def test_the_command_prints_a_verdict_and_writes_a_figure(tmp_path) -> None:
    png = tmp_path / "coord.png"
    command = ["coord-check", "--widths", "32,64", "--depths", "", "--steps", "1", "--parameterization"]
    done = CliRunner().invoke(main, [*command, "sp", "-o", str(png)])
    assert done.exit_code == 0, done.output
    assert "sp over width: NOT flat; steepest size: output at step 1" in done.output
    assert png.read_bytes().startswith(b"\x89PNG")
    found = json.loads(CliRunner().invoke(main, [*command, "sp,mup", "--json"]).output)
    assert [(f["parameterization"], f["axis"]) for f in found] == [("sp", "width"), ("mup", "width")]
    assert (found[0]["flat"], found[0]["steepest_size"]["layer"]) == (False, "output")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--widths", "64,x"], "--widths got '64,x'; wanted whole numbers above 0"),
        (["--parameterization", "mub", "--depths", ""], "'mub' is not known"),
        (["--widths", "", "--depths", ""], "nothing to check"),
    ],
)
def test_bad_arguments_are_refused(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(main, ["coord-check", *arguments])
    assert done.exit_code == 2
    assert message in done.output
