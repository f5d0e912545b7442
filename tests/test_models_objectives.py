"""Objectives: what a model that knows image and noise must predict, and what follows from its prediction."""

import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from models import config
from models.objectives import EDM, Objective, build_objective

CONFIGS: dict[str, config.Objective] = {
    "flow": config.RectifiedFlow(),
    "flow-logit-normal": config.RectifiedFlow(t_distribution="logit-normal"),
    "interpolant-linear": config.Interpolant(path="linear"),
    "interpolant-gvp": config.Interpolant(path="gvp"),
    "interpolant-vp": config.Interpolant(path="vp"),
    "ddpm-linear": config.DDPM(),
    "ddpm-cosine": config.DDPM(betas="cosine"),
    "v-gvp": config.VPrediction(),
    "v-vp": config.VPrediction(path="vp"),
    "x-linear": config.XPrediction(path="linear"),
    "x-gvp": config.XPrediction(),
    "edm": config.EDM(),
}
OBJECTIVES = {name: build_objective(each) for name, each in CONFIGS.items()}
GENERATOR = torch.Generator().manual_seed(0)
X, NOISE = torch.randn(2, 6, 2, 4, 4, generator=GENERATOR, dtype=torch.float64)
T = torch.tensor([0.02, 0.1, 0.25, 0.5, 0.9, 0.99], dtype=torch.float64)
Y = torch.arange(6)

every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


@every_objective
def test_the_exact_prediction_has_no_loss(objective: Objective) -> None:
    def oracle(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        assert torch.equal(x, objective.inputs(objective.noised(X, NOISE, T), T)[0])
        assert ((t >= 0) & (t <= 1)).all()
        assert torch.equal(y, Y)
        return objective.target(X, NOISE, T)

    assert torch.equal(objective.loss(oracle, X, Y, T, NOISE), torch.zeros(6, dtype=torch.float64))


@every_objective
def test_a_prediction_goes_back_to_image_and_noise(objective: Objective) -> None:
    x0, eps = objective.x0_and_eps(objective.target(X, NOISE, T), objective.noised(X, NOISE, T), T)
    torch.testing.assert_close(x0, X, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(eps, NOISE, atol=1e-8, rtol=1e-8)


@every_objective
def test_velocity_is_the_derivative_of_the_path(objective: Objective) -> None:
    h = 1e-6
    slope = (objective.noised(X, NOISE, T + h) - objective.noised(X, NOISE, T - h)) / (2 * h)
    velocity = objective.velocity(objective.target(X, NOISE, T), objective.noised(X, NOISE, T), T)
    torch.testing.assert_close(velocity, slope, atol=1e-5, rtol=1e-6)


@every_objective
def test_velocity_at_data_is_finite_where_it_says_so(objective: Objective) -> None:
    t = torch.zeros(6, dtype=torch.float64)
    velocity = objective.velocity(objective.target(X, NOISE, t), objective.noised(X, NOISE, t), t)
    if objective.finite_at_data:
        assert velocity.isfinite().all()
    elif not isinstance(objective, EDM):  # EDM's could be evaluated; algorithm 1 of the paper does not
        assert not velocity.isfinite().all()


@every_objective
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_times_are_between_data_and_noise(objective: Objective, dtype: torch.dtype) -> None:
    u = torch.tensor([0.0, 1e-6, 0.3, 0.5, 0.999, 1 - 2**-24], dtype=dtype)
    t = objective.draw_t(u)
    assert t.dtype == dtype
    assert ((t >= 0) & (t <= 1)).all()
    assert (t.diff() >= 0).all()
    assert objective.target(X.to(dtype), NOISE.to(dtype), t).isfinite().all()


def test_distributions_of_times() -> None:
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    assert torch.equal(OBJECTIVES["flow"].draw_t(u), u)
    logit = torch.logit(OBJECTIVES["flow-logit-normal"].draw_t(u))
    assert (float(logit.mean()), float(logit.std())) == pytest.approx((0, 1), abs=1e-3)
    log_sigma = torch.log(80 * OBJECTIVES["edm"].draw_t(u))
    assert (float(log_sigma.mean()), float(log_sigma.std())) == pytest.approx((-1.2, 1.2), abs=1e-3)
    steps = OBJECTIVES["ddpm-linear"].draw_t(u) * 1000
    assert torch.equal(steps.round().unique(return_counts=True)[1], torch.full((1000,), 100))
    torch.testing.assert_close(steps, steps.round(), atol=1e-9, rtol=0)


def test_targets_of_the_papers() -> None:
    t = T.view(-1, 1, 1, 1)
    torch.testing.assert_close(OBJECTIVES["flow"].target(X, NOISE, T), NOISE - X)
    assert torch.equal(OBJECTIVES["ddpm-cosine"].target(X, NOISE, T), NOISE)
    assert torch.equal(OBJECTIVES["x-gvp"].target(X, NOISE, T), X)
    angle = t * math.pi / 2
    v = angle.cos() * NOISE - angle.sin() * X
    torch.testing.assert_close(OBJECTIVES["v-gvp"].target(X, NOISE, T), v)
    torch.testing.assert_close(OBJECTIVES["interpolant-gvp"].target(X, NOISE, T), v * math.pi / 2)
    torch.testing.assert_close(OBJECTIVES["interpolant-linear"].target(X, NOISE, T), NOISE - X)


def test_rectified_flow_is_bitwise_what_it_says() -> None:
    flow, x, noise, t = OBJECTIVES["flow"], X.float(), NOISE.float(), T.float()
    at = t.view(-1, 1, 1, 1)
    assert torch.equal(flow.noised(x, noise, t), (1 - at) * x + at * noise)
    assert torch.equal(flow.target(x, noise, t), noise - x)
    assert torch.equal(flow.velocity(x, noise, t), x)


def test_edm_is_its_definition() -> None:
    """The loss lambda(sigma) |D(x + n) - x|^2, D, the weight and c_noise as in table 1 of Karras et al. 2022."""
    edm, data = build_objective(config.EDM(sigma_data=0.4)), 0.4
    sigma = torch.tensor([0.002, 0.01, 0.3, 1.0, 20.0, 80.0], dtype=torch.float64)
    at = sigma.view(-1, 1, 1, 1)
    c_skip, c_out = data**2 / (at**2 + data**2), at * data / (at**2 + data**2).sqrt()
    c_in, c_noise = 1 / (at**2 + data**2).sqrt(), sigma.log() / 4
    seen = []

    def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen.append(t)
        return torch.tanh(x + t.view(-1, 1, 1, 1))

    loss = edm.loss(network, X, Y, sigma / 80, NOISE)
    mapped = (4 * c_noise - math.log(0.002)) / math.log(80 / 0.002)
    torch.testing.assert_close(seen[0], mapped, atol=1e-12, rtol=0)
    assert (float(seen[0][0]), float(seen[0][-1])) == pytest.approx((0.0, 1.0))
    x_t = X + at * NOISE
    denoised = c_skip * x_t + c_out * torch.tanh(c_in * x_t + mapped.view(-1, 1, 1, 1))
    weight = (sigma**2 + data**2) / (sigma * data) ** 2
    torch.testing.assert_close(loss, weight * (denoised - X).square().flatten(1).mean(1), rtol=1e-9, atol=0)
    x0, _ = edm.x0_and_eps(edm.predict(network, x_t, sigma / 80, Y), x_t, sigma / 80)
    torch.testing.assert_close(x0, denoised)


def test_edm_samples_at_the_papers_noise_levels() -> None:
    levels = [80 * t for t in OBJECTIVES["edm"].times(18, 1.0)]
    wanted = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    assert levels == pytest.approx([*wanted, 0.0])
    assert OBJECTIVES["flow"].times(4, 1.0) == [1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize("extra_channels", [0, 2])
def test_loss_is_the_mean_square_of_each_sample(extra_channels: int) -> None:
    offset = torch.arange(6.0).view(6, 1, 1, 1)

    def off(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return torch.cat([(NOISE - X) + offset, torch.full((6, extra_channels, 4, 4), 100.0)], 1).bfloat16()

    loss = OBJECTIVES["flow"].loss(off, X.float(), Y, T.float(), NOISE.float())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.arange(6.0) ** 2, atol=1e-3, rtol=0.02)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"sigma_data": 0.0}, r"sigma_data is 0\.0; wanted a finite number above 0"),
        ({"log_sigma_std": -1.0}, r"log_sigma_std is -1\.0; wanted a finite number above 0"),
        ({"log_sigma_mean": math.nan}, "log_sigma_mean is nan; wanted a finite number"),
    ],
)
def test_bad_settings_are_named(setting: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.EDM(**setting)


def test_an_unknown_objective_is_named() -> None:
    with pytest.raises(
        ValueError,
        match=r"no objective for str; wanted one of \['RectifiedFlow', .*'EDM'",
    ):
        build_objective("rectified-flow")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: config.RectifiedFlow(t_distribution="lognorm"),
            "t_distribution of RectifiedFlow is 'lognorm'",
        ),
        (lambda: config.VPrediction(path="linear"), "path of VPrediction is 'linear'; wanted one of 'gvp', 'vp'"),
        (lambda: config.DDPM(betas="sqrt"), "betas of DDPM is 'sqrt'; wanted one of 'linear', 'cosine'"),
        (lambda: config.Interpolant(path="foo"), "path of Interpolant is 'foo'"),
        (lambda: config.XPrediction(path="cosine"), "path of XPrediction is 'cosine'"),
    ],
)
def test_unknown_alternatives_are_refused_at_construction(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_times_by_log_snr_are_equal_steps_in_it() -> None:
    objective = build_objective(config.RectifiedFlow())
    start = objective.path.time_of(-5.1)
    times = objective.times(8, start, by_log_snr=True)
    lambdas = [float(objective.path.half_log_snr(torch.tensor(t, dtype=torch.float64))) for t in times[:-1]]
    assert (len(times), times[0], times[-1]) == (9, start, 0.0)
    assert lambdas == pytest.approx([-5.1 + i * 10.2 / 7 for i in range(8)], abs=1e-6)


def test_objectives_whose_losses_do_not_compare_have_different_labels() -> None:
    assert config.objective_label(config.RectifiedFlow()) == "rectified-flow"
    logit = config.RectifiedFlow(t_distribution="logit-normal")
    assert config.objective_label(logit) == "rectified-flow t_distribution=logit-normal"
    assert config.objective_label(config.EDM(sigma_data=0.3)) == "edm sigma_data=0.3"


def test_an_image_predicted_with_the_loss_of_its_velocity() -> None:
    """The weighted error of the image is the plain one of the velocities, where t is not clipped."""
    objective = build_objective(config.XVelocityPrediction())
    generator = torch.Generator().manual_seed(0)
    x, noise, output = torch.randn(3, 4, 1, 2, 2, generator=generator).unbind(0)
    t = torch.tensor([0.01, 0.1, 0.5, 0.9])
    y = torch.zeros(4, dtype=torch.long)
    loss = objective.loss(lambda *_: output, x, y, t, noise)
    implied = objective.velocity(output, objective.noised(x, noise, t), t)
    plain = (implied - (noise - x)).square().flatten(1).mean(1)
    assert loss[1:] == pytest.approx(plain[1:], rel=1e-4)
    assert loss[0] == pytest.approx((output - x).square().flatten(1).mean(1)[0] / 0.05**2)
    middle = objective.draw_t(torch.tensor([0.5]))
    assert middle == pytest.approx(torch.sigmoid(torch.tensor([0.8])))


def test_objectives_of_other_files_are_found_without_importing_them():
    code = "from models import config, objectives as o; o.build_objective(config.PyramidFlow()); o.build_objective(1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ValueError: no objective for int; wanted one of" in done.stderr
    assert "PyramidFlow" in done.stderr
