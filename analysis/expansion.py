"""Value, gradient and Hessian of the summed Huber objective, for a batch of thetas at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.laws import Array, Law, PowerSum

Expansion = Callable[[Array, Array, Array], tuple[Array, Array, Array]]
"""Of theta (batch, p), log y and weights (1 or batch, n): the objective (batch,), gradient and Hessian."""


def expansion_of(law: Law, log_x: Array, delta: Array) -> Expansion:
    """The closed form for sums of powers; for other laws a Hessian by differences of their gradient.

    `delta` is the Huber threshold of each point, (n,), or of all, (1,).
    """
    if isinstance(law, PowerSum):
        terms = tuple(_Term.of(component) for component in law.design(log_x))
        return _OfPowers(terms=terms, num_params=law.num_params, delta=delta)
    return _ByDifferences(law=law, log_x=log_x, delta=delta)


def _huber(residual: Array, weights: Array, delta: Array) -> tuple[Array, Array, Array]:
    """The objective (batch,), and weight * psi and weight * psi' at each point, (batch, n)."""
    psi = np.clip(residual, -delta, delta)
    pull = weights * psi
    value = np.einsum("bn,bn->b", pull, residual) - 0.5 * np.einsum("bn,bn->b", pull, psi)
    return value, pull, weights * (psi == residual)


@dataclass(frozen=True, kw_only=True)
class _Term:
    """One term's logarithm, columns @ theta[used]: the columns of the design that it depends on, and no others."""

    used: NDArray[np.intp]
    columns: Array
    """(n, used), or (1, used) where all points share one row: a floor."""

    @classmethod
    def of(cls, component: Array) -> _Term:
        used = np.flatnonzero(component.any(axis=0))
        columns = component[:, used]
        alike = bool((columns == columns[:1]).all())
        return cls(used=used, columns=np.ascontiguousarray(columns[:1] if alike else columns))

    def value(self, theta: Array) -> Array:
        """The term itself, (batch, n) or (batch, 1). Bounds keep it within the range of floats."""
        return np.exp(theta[:, self.used] @ self.columns.T)

    def sums(self, mass: Array) -> Array:
        """Sum over points of mass * columns, (batch, used)."""
        return mass.sum(axis=1, keepdims=True) * self.columns if len(self.columns) == 1 else mass @ self.columns

    def products(self, other: _Term) -> Array:
        """Products of this term's columns with another's, (n or 1, used * other's used)."""
        product = self.columns[:, :, None] * other.columns[:, None, :]
        return product.reshape(len(product), -1)


@dataclass(frozen=True, kw_only=True)
class _OfPowers:
    """With shares w of the terms in y, d log y = w.T and d2 log y = T'(diag(w) - w w')T for the design T."""

    terms: tuple[_Term, ...]
    num_params: int
    delta: Array

    def __call__(self, theta: Array, log_y: Array, weights: Array) -> tuple[Array, Array, Array]:
        values = [term.value(theta) for term in self.terms]
        total = values[0] + values[1] if len(values) > 1 else values[0].copy()
        for more in values[2:]:
            total += more
        value, pull, inside = _huber(log_y - np.log(total), weights, self.delta)
        inverse = np.reciprocal(total, out=total)
        inside += pull
        pull *= inverse
        inside *= inverse
        inside *= inverse
        gradient = np.zeros((len(theta), self.num_params))
        hessian = np.zeros((len(theta), self.num_params, self.num_params))
        for k, (term, share) in enumerate(zip(self.terms, values, strict=True)):
            slope = pull * share
            gradient[:, term.used] -= term.sums(slope)
            curve = inside * share
            for m in range(k, len(self.terms)):
                mass = curve * values[m]
                if m == k:
                    mass -= slope
                self._add(hessian, k, m, mass)
        return value, gradient, hessian

    def _add(self, hessian: Array, k: int, m: int, mass: Array) -> None:
        """Add the block of two terms, and its transpose where they are not one."""
        one, two = self.terms[k], self.terms[m]
        products = one.products(two)
        sums = mass.sum(axis=1, keepdims=True) * products if len(products) == 1 else mass @ products
        block = sums.reshape(len(mass), len(one.used), len(two.used))
        hessian[:, one.used[:, None], two.used[None]] += block
        if m != k:
            hessian[:, two.used[:, None], one.used[None]] += np.swapaxes(block, 1, 2)


@dataclass(frozen=True, kw_only=True)
class _ByDifferences:
    """A law's own gradient; the Hessian by central differences of the objective's gradient, symmetrised."""

    law: Law
    log_x: Array
    delta: Array
    step: float = 1e-5

    def __call__(self, theta: Array, log_y: Array, weights: Array) -> tuple[Array, Array, Array]:
        value, pull, inside = _huber(log_y - self.law.log_y(theta, self.log_x), weights, self.delta)
        J = self.law.gradient(theta, self.log_x)
        gradient = -np.einsum("bn,bnp->bp", pull, J)
        hessian = np.einsum("bn,bnp,bnq->bpq", inside, J, J, optimize=True)
        for k in range(theta.shape[1]):
            shift = np.zeros(theta.shape[1])
            shift[k] = self.step
            ahead, behind = self.law.gradient(theta + shift, self.log_x), self.law.gradient(theta - shift, self.log_x)
            hessian[:, k] -= np.einsum("bn,bnp->bp", pull, (ahead - behind) / (2 * self.step))
        return value, gradient, 0.5 * (hessian + np.swapaxes(hessian, 1, 2))
