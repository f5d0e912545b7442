"""Samplers on normal data, for which every objective's exact model is linear and its flow is known."""

from __future__ import annotations

import math

import pytest
import torch
from gaussian_oracle import GaussianOracle, S, std
from torch import Tensor

from models import config
from models.dpm_v3 import Statistics
from models.field import Field
from models.objectives import EDM, Objective, build_objective
from models.samplers import LOWEST_HALF_LOG_SNR, SAMPLERS, Draws, Sampler, sample

OBJECTIVE = build_objective(config.RectifiedFlow())
OBJECTIVES: dict[str, Objective] = {
    "flow": OBJECTIVE,
    "ddpm-linear": build_objective(config.DDPM()),
    "ddpm-cosine": build_objective(config.DDPM(betas="cosine")),
    "v-gvp": build_objective(config.VPrediction()),
    "x-linear": build_objective(config.XPrediction(path="linear")),
    "edm": build_objective(config.EDM()),
}
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
NO_CLASS = torch.zeros(1, dtype=torch.long)


def arbitrary_statistics() -> Statistics:
    """Statistics of no model: the order of dpm-v3 does not depend on them."""
    grid = torch.linspace(-6, 6, 2001, dtype=torch.float64)
    l, s, b = 0.5 + 0.3 * grid.sin(), 0.2 * grid.cos(), 0.3 * (grid + 1).sin()  # noqa: E741
    return Statistics(grid, *(value.view(-1, 1, 1, 1) for value in (l, s, b)))


def error(sampler: str, objective: Objective, steps: int, start: float = 0.95, end: float = 0.05) -> float:
    """Distance to the exact flow from one standard deviation of x_t at `start`, in float64."""
    if isinstance(objective, EDM):
        times = [(start ** (1 / 7) + i / steps * (end ** (1 / 7) - start ** (1 / 7))) ** 7 for i in range(steps + 1)]
    else:
        times = [start + i / steps * (end - start) for i in range(steps + 1)]
    field = Field(GaussianOracle(objective), objective, NO_CLASS)
    x = torch.full((1, 1, 1, 1), std(objective, start), dtype=torch.float64)
    draws = Draws(None, arbitrary_statistics(), sampler)
    return abs(SAMPLERS[sampler].walk(field, x, times, draws).item() - std(objective, end))


ORDERS = {"euler": 1, "ddim": 1, "heun": 2, "dpmpp-2m": 2, "dpmpp-3m": 3}


@pytest.mark.parametrize(
    ("sampler", "order", "objective"),
    [(sampler, order, name) for sampler, order in ORDERS.items() for name in OBJECTIVES]
    + [("dpm-v3", 2, name) for name in ("flow", "ddpm-cosine", "edm")],
)
def test_convergence_order(sampler: str, order: int, objective: str) -> None:
    """The slope of log error against log steps, by least squares."""
    # Third order is reached late: where an error changes its sign on the way, the slope between two points says little.
    all_steps = (160, 320, 640) if order == 3 else (40, 80, 160)
    x = torch.tensor([math.log(steps) for steps in all_steps])
    y = torch.tensor([math.log(error(sampler, OBJECTIVES[objective], steps)) for steps in all_steps])
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    assert -slope == pytest.approx(order, abs=0.25 if sampler in ("dpmpp-3m", "dpm-v3") else 0.15)


@every_objective
@pytest.mark.parametrize(
    ("sampler", "tolerance"),
    [("euler", 0.02), ("heun", 2e-3), ("ddim", 0.02), ("dpmpp-2m", 2e-3), ("dpmpp-3m", 4e-3)],
)
def test_from_noise_to_images(sampler: Sampler, tolerance: float, objective: Objective) -> None:
    """Down to t = 0, where sigma is 0 and some velocities are infinite, the flow maps noise to S noise."""
    noise = torch.linspace(-2, 2, 8, dtype=torch.float64).view(2, 1, 2, 2)
    errors = []
    for steps in (20, 160):
        got = sample(
            GaussianOracle(objective),
            objective,
            noise,
            torch.zeros(2, dtype=torch.long),
            sampler=sampler,
            steps=steps,
            guidance=1.0,
            null_class=0,
        )
        assert got.dtype == torch.float64
        errors.append(float((got - S * noise).abs().max()) / (2 * S))
    assert errors[1] < tolerance
    assert errors[1] < 0.25 * errors[0]


@every_objective
@pytest.mark.parametrize("sampler", ["ddpm", "sde-euler"])
def test_variance_of_stochastic_samplers(sampler: Sampler, objective: Objective) -> None:
    """It converges to that of the data, at first order; 65,536 numbers know their variance to 0.6%."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 1, 256, 256, generator=generator)
    off = []
    for steps in (90, 180):
        got = sample(
            GaussianOracle(objective),
            objective,
            noise,
            NO_CLASS,
            sampler=sampler,
            steps=steps,
            guidance=1.0,
            null_class=0,
            generator=generator,
        )
        off.append(float(got.var()) / S**2 - 1)
    assert abs(off[1]) < 0.12
    assert 2 * off[1] - off[0] == pytest.approx(0, abs=0.035), "what is left without the term of first order"


def test_stochastic_samplers_are_a_function_of_their_generator() -> None:
    noise, objective = torch.randn(1, 1, 4, 4), OBJECTIVES["ddpm-linear"]

    def images(seed: int) -> Tensor:
        return sample(
            GaussianOracle(objective),
            objective,
            noise,
            NO_CLASS,
            sampler="ddpm",
            steps=4,
            guidance=1.0,
            null_class=0,
            generator=torch.Generator().manual_seed(seed),
        )

    assert torch.equal(images(1), images(1))
    assert not torch.equal(images(1), images(2))


@pytest.mark.parametrize("v", [-1.0, 1.0])
def test_ancestral_sampling_with_a_learned_variance(v: float) -> None:
    """v = -1 is the posterior variance, as without learning; v = 1 is beta, and gives more noise."""
    objective, plain = build_objective(config.DDPM(learn_variance=True)), OBJECTIVES["ddpm-linear"]
    oracle = GaussianOracle(plain)

    def with_variance(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return torch.cat([oracle(x, t, y), torch.full_like(x, v)], 1)

    noise = torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    learned, fixed = (
        sample(
            model,
            kind,
            noise,
            NO_CLASS,
            sampler="ddpm",
            steps=20,
            guidance=1.0,
            null_class=0,
            generator=torch.Generator().manual_seed(1),
        )
        for model, kind in ((with_variance, objective), (oracle, plain))
    )
    if v == -1:
        torch.testing.assert_close(learned, fixed, atol=1e-4, rtol=1e-4)
    else:
        assert learned.var() > 1.05 * fixed.var()


class Counted:
    """A constant velocity per label: label for y < 3, -1 for the null class 3."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.batches.append(len(x))
        value = torch.where(y == 3, -1.0, y.float())
        return value.view(-1, 1, 1, 1).expand_as(x)


@pytest.mark.parametrize(
    ("sampler", "guidance", "batches"),
    [("euler", 1.0, [3, 3]), ("euler", 2.5, [6, 6]), ("heun", 1.0, [3] * 4), ("euler", 0.0, [6, 6])],
)
def test_guidance_and_its_cost(sampler: str, guidance: float, batches: list[int]) -> None:
    model, noise = Counted(), torch.randn(3, 1, 2, 2)
    y = torch.tensor([0, 1, 2])
    got = sample(model, OBJECTIVE, noise, y, sampler=sampler, steps=2, guidance=guidance, null_class=3)  # type: ignore[arg-type]
    velocity = -1 + guidance * (y.float() + 1)
    torch.testing.assert_close(got, noise - velocity.view(3, 1, 1, 1))
    assert model.batches == batches


def test_guidance_acts_in_its_interval_only() -> None:
    """Four Euler steps from t = 1, 0.75, 0.5 and 0.25: those at 0.75 and 0.5 lie in [0.4, 0.75]."""
    model, noise, y = Counted(), torch.randn(3, 1, 2, 2), torch.tensor([0, 1, 2])
    got = sample(
        model,
        OBJECTIVE,
        noise,
        y,
        sampler="euler",
        steps=4,
        guidance=2.0,
        null_class=3,
        guidance_interval=(0.4, 0.75),
    )
    guided = -1 + 2.0 * (y.float() + 1)
    torch.testing.assert_close(got, noise - (0.5 * y.float() + 0.5 * guided).view(3, 1, 1, 1))
    assert model.batches == [3, 6, 6, 3]


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "dpm-v3" and not SAMPLERS[name].own])
def test_outside_its_interval_guidance_changes_nothing(sampler: Sampler) -> None:
    noise, y, objective = torch.randn(3, 1, 2, 2), torch.tensor([0, 1, 2]), OBJECTIVES["v-gvp"]
    start = objective.path.time_of(LOWEST_HALF_LOG_SNR) if SAMPLERS[sampler].needs_log_snr else 1.0

    def images(guidance: float, interval: tuple[float, float] | None) -> Tensor:
        return sample(
            Counted(),
            objective,
            noise,
            y,
            sampler=sampler,
            steps=3,
            guidance=guidance,
            null_class=3,
            guidance_interval=interval,
            generator=torch.Generator().manual_seed(0),
            times=objective.times(3, start),
        )

    assert torch.equal(images(4.0, (0.4, 0.6)), images(1.0, None))
    assert not torch.equal(images(4.0, (0.4, 0.7)), images(1.0, None))
    assert torch.equal(images(4.0, (0.0, 1.0)), images(4.0, None))


def test_sampling_keeps_no_graph() -> None:
    weight = torch.ones((), requires_grad=True)
    got = sample(
        lambda x, t, y: weight * x,
        OBJECTIVE,
        torch.randn(2, 1, 2, 2),
        torch.zeros(2, dtype=torch.long),
        sampler="euler",
        steps=1,
        guidance=1.0,
        null_class=1,
    )
    assert not got.requires_grad


@pytest.mark.parametrize(
    ("sampler", "steps", "message"),
    [
        ("dpm++", 2, r"sampler is 'dpm\+\+'; wanted one of \['ddpm', 'ddim', 'euler', 'heun', .*\]"),
        ("ddpm", 2, "sampler ddpm adds noise; wanted a generator"),
        ("sde-euler", 2, "sampler sde-euler adds noise; wanted a generator"),
        ("dpm-v3", 2, "sampler dpm-v3 needs statistics of the model; wanted those of estimate_statistics"),
        ("euler", 0, "steps is 0; wanted at least 1"),
    ],
)
def test_bad_settings_are_named(sampler: str, steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(
            GaussianOracle(OBJECTIVE),
            OBJECTIVE,
            torch.ones(1, 1, 1, 1),
            torch.zeros(1, dtype=torch.long),
            sampler=sampler,  # type: ignore[arg-type]
            steps=steps,
            guidance=1.0,
            null_class=0,
        )


def test_guidance_leaves_the_learned_variance_alone() -> None:
    """A model whose prediction and variance are both the label: only the prediction is guided."""
    objective = build_objective(config.DDPM(learn_variance=True))

    def model(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return y.view(-1, 1, 1, 1).expand(-1, 2, 2, 2).to(x)

    x, y = torch.randn(3, 1, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2])
    field = Field(model, objective, y, guidance=2.0, null_class=3)
    x0, fraction = field.x0_and_fraction(x, 0.5)
    label = y.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).double()
    assert torch.equal(fraction, label)
    wanted, _ = objective.x0_and_eps(3 + 2.0 * (label - 3), x, torch.full((3,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(x0, wanted)


@pytest.mark.parametrize("interval", [(0.5, 0.5), (-0.1, 0.5), (0.2, 1.1)])
def test_a_bad_interval_is_named(interval: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"wanted \(low, high\) with 0 <= low < high <= 1"):
        Field(GaussianOracle(OBJECTIVE), OBJECTIVE, NO_CLASS, interval=interval)


class Nonlinear:
    """A prediction of the noise that is linear in nothing."""

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(1.3 * x + 0.5 - t.view(-1, 1, 1, 1)) + 0.1 * x


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp-2m"])
def test_diffusers_gives_the_same_images(sampler: Sampler) -> None:
    """Their scheduler of the same name with the linear betas: step k - 1 of theirs is t = k / 1000 here."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is an oracle here, not a dependency")
    settings = {"beta_start": 1e-4, "beta_end": 0.02, "timestep_spacing": "trailing"}
    scheduler = {
        "ddim": lambda: diffusers.DDIMScheduler(clip_sample=False, **settings),
        "ddpm": lambda: diffusers.DDPMScheduler(clip_sample=False, **settings),
        "dpmpp-2m": lambda: diffusers.DPMSolverMultistepScheduler(final_sigmas_type="zero", **settings),
    }[sampler]()
    noise, steps = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)), 20
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(5)
    wanted = noise
    for k in scheduler.timesteps:
        eps = Nonlinear()(wanted, torch.full((2,), (float(k) + 1) / 1000), NO_CLASS)
        extra = {} if sampler == "ddim" else {"generator": generator}
        wanted = scheduler.step(eps, k, wanted, **extra).prev_sample
    objective = OBJECTIVES["ddpm-linear"]
    got = sample(
        Nonlinear(),
        objective,
        noise,
        torch.zeros(2, dtype=torch.long),
        sampler=sampler,
        steps=steps,
        guidance=1.0,
        null_class=0,
        generator=torch.Generator().manual_seed(5),
        times=objective.times(steps, objective.path.time_of(LOWEST_HALF_LOG_SNR)),
    )
    torch.testing.assert_close(got, wanted, atol=2e-3, rtol=1e-3)


def test_high_orders_pay_at_ordinary_numbers_of_steps() -> None:
    """Through `sample` itself, its times and its last step included: the solvers in lambda beat Euler by far."""
    noise = torch.randn(4096, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def error(sampler: Sampler, steps: int) -> float:
        settings = {"steps": steps, "guidance": 1.0, "null_class": 0}
        labels = torch.zeros(len(noise), dtype=torch.long)
        got = sample(GaussianOracle(OBJECTIVE), OBJECTIVE, noise, labels, sampler=sampler, **settings)
        fine = sample(
            GaussianOracle(OBJECTIVE), OBJECTIVE, noise, labels, sampler="heun", **{**settings, "steps": 2000}
        )
        return float((got - fine).square().mean().sqrt())

    assert error("dpmpp-2m", 20) < error("euler", 20) / 2
    assert error("dpmpp-3m", 40) < error("dpmpp-2m", 40) * 1.5
