"""Kaplan's law of loss against parameters and data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.laws import Array, Law
from analysis.projection import LEAST_SHARE, exponent_axis, project, spread

LARGEST = 60.0
"""Logs beyond which a start is not looked for: squares of ratios stay within the range of floats."""


@dataclass(frozen=True)
class KaplanLaw(Law):
    """L = [(N_c / N)^(alpha_N / alpha_D) + D_c / D]^alpha_D: Kaplan et al. 2020, arXiv 2001.08361, equation 1.5.

    It has no floor. theta holds the logs of N_c^alpha_N and D_c^alpha_D, so that units shift it as they do a sum.
    """

    name = "kaplan"
    equation = "L = [(N_c / N)^(alpha_N / alpha_D) + D_c / D]^alpha_D"
    variables = ("params", "samples")
    coefficients = ("N_c", "D_c")
    exponents = ("alpha_N", "alpha_D")
    pairs = ((0, 0), (1, 1))
    floor = None
    params = ("N_c", "D_c", "alpha_N", "alpha_D")
    entangled = coefficients
    identified_by = "sizes and samples that vary apart from one another, where either of them limits the loss"

    def log_y(self, theta: Array, log_x: Array) -> Array:
        """alpha_D times a log-sum-exp of the two terms' logs over alpha_D."""
        n, d, gamma = self._logs(theta, log_x)
        return np.asarray(gamma * np.logaddexp(n / gamma, d / gamma))

    def gradient(self, theta: Array, log_x: Array) -> Array:
        """The terms' shares w of the bracket, and the bracket's own dependence on alpha_D."""
        n, d, gamma = self._logs(theta, log_x)
        total = np.logaddexp(n / gamma, d / gamma)
        w, v = np.exp(n / gamma - total), np.exp(d / gamma - total)
        by_gamma = total - (w * n + v * d) / gamma
        return np.stack([w, v, -w * log_x[:, 0], -v * log_x[:, 1] + by_gamma], axis=-1)

    @staticmethod
    def _logs(theta: Array, log_x: Array) -> tuple[Array, Array, Array]:
        """Logs of (N_c/N)^alpha_N and (D_c/D)^alpha_D, each (batch, n), and alpha_D, (batch, 1)."""
        a, b, alpha, gamma = (theta[:, [k]] for k in range(4))
        return a - alpha * log_x[:, 0], b - gamma * log_x[:, 1], gamma

    def to_params(self, theta: Array) -> dict[str, Array]:
        a, b, alpha, gamma = np.moveaxis(np.asarray(theta, dtype=float), -1, 0)
        with np.errstate(over="ignore"):
            return {"N_c": np.exp(a / alpha), "D_c": np.exp(b / gamma), "alpha_N": alpha, "alpha_D": gamma}

    def to_theta(self, params: dict[str, float] | dict[str, Array]) -> Array:
        N_c, D_c, alpha, gamma = (np.asarray(params[name], dtype=float) for name in self.params)
        return np.stack([alpha * np.log(N_c), gamma * np.log(D_c), alpha, gamma], axis=-1)

    def starts(self, log_x: Array, log_y: Array, weights: Array, count: int) -> Array:
        """At each alpha_D, y^(1 / alpha_D) is a sum of powers with exponents alpha_N / alpha_D and 1."""
        gammas, alphas = exponent_axis(2), exponent_axis(2)
        found, errors = [], []
        for gamma in gammas:
            sizes = np.clip(-np.outer(alphas / gamma, log_x[:, 0]), -LARGEST, LARGEST)
            terms: list[tuple[int | None, Array]] = [(0, np.exp(sizes)), (None, np.exp(-log_x[None, :, 1]))]
            target = np.exp(np.clip(log_y / gamma, -LARGEST, LARGEST))
            coefficients, error = project(terms, target, weights)
            logs = gamma * np.log(np.maximum(coefficients, LEAST_SHARE * target.min()))
            found.append(np.column_stack([logs, alphas, np.full(len(alphas), gamma)]))
            errors.append(gamma**2 * error)
        chosen = spread(np.array(errors), count)
        return np.concatenate(found)[chosen]
