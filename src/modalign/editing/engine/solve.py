"""Solve for the change of a weight, given keys, residuals and key statistics.

    ridge:      Delta = R K^T (lambda C0 + K K^T)^-1            (MEMIT eq. 14; PMET eq. 15)
    null space: Delta = R K^T P (P (K K^T + Kp Kp^T) P + L2 I)^-1   (AlphaEdit, arXiv 2410.02355)

Both need C0 only through S = (lambda C0)^-1 K or S = P K / L2, which is kept in the patch (see
``modalign.patches.changes``). C0 is factored once; everything else is n x n.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from modalign.errors import ModalignError

RIDGE = 1e-10  # in units of C0's mean diagonal; grows tenfold until the factorisation succeeds
SMALL_RIDGE = (
    1e-6  # up to here a ridge only fills empty directions; a larger one changes the update
)
LARGEST_RIDGE = 1e-2
ILL_CONDITIONED = 1e8  # condition estimated from the factor's diagonal; the true number is larger


class SolveError(ModalignError):
    """A system that has no usable solution."""


@dataclass(frozen=True)
class Factor:
    """The Cholesky factor of C0.

    Attributes:
        lower: (d_in, d_in), float64.
        ridge: what had to be added to the diagonal, in units of the mean diagonal.
        condition: estimate of C0's condition number, from the factor's diagonal.
    """

    lower: Tensor
    ridge: float
    condition: float

    @property
    def words(self) -> str:
        """Say in words what was added."""
        if self.ridge <= SMALL_RIDGE:
            return f"a ridge of {self.ridge:.0e} fills directions that no key uses"
        return (
            f"the key statistics are ill-conditioned (about {self.condition:.0e}); a ridge of "
            f"{self.ridge:.0e} was added"
        )

    def solve(self, right: Tensor) -> Tensor:
        """Return C0^-1 right, (d_in, n)."""
        return torch.cholesky_solve(right, self.lower)


def factorise(covariance: Tensor) -> Factor:
    """Factor C0 (d_in, d_in), adding a ridge if it is not, or only barely, positive definite.

    With fewer distinct keys than dimensions, C0 is singular (the first FFN of a parallel block sees only
    the token), and an update would lie in what rounding errors left in its empty directions.

    Raises:
        SolveError: C0 is not finite, or even a ridge of a hundredth of its diagonal does not help.
    """
    matrix = covariance.double()
    if not matrix.isfinite().all():
        raise SolveError("the key statistics hold NaN or infinite values; compute them again")
    scale = float(matrix.diagonal().mean())
    ridge = 0.0
    while True:
        eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        lower, failed = torch.linalg.cholesky_ex(matrix + ridge * scale * eye)
        if not failed:
            diagonal = lower.diagonal()
            condition = float((diagonal.max() / diagonal.min()) ** 2)
            if condition < ILL_CONDITIONED:
                return Factor(lower, ridge, condition)
        ridge = RIDGE if ridge == 0 else ridge * 10
        if ridge > LARGEST_RIDGE or scale <= 0:
            raise SolveError(
                "the key statistics cannot be factored; use more tokens (edit stats --tokens)"
            )


@dataclass(frozen=True)
class Spectrum:
    """C0's eigenvalues, ascending, (d_in,), and its eigenvectors in columns."""

    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, covariance: Tensor) -> Spectrum:
        """Decompose C0, (d_in, d_in)."""
        return cls(*torch.linalg.eigh(covariance.double()))


def null_space(spectrum: Spectrum, threshold: float, share: float | None = None) -> Tensor:
    """Return directions that keys hardly use: eigenvectors of C0 with the smallest eigenvalues.

    Args:
        spectrum: of C0.
        threshold: largest eigenvalue of a direction; 2e-2 in AlphaEdit's code. It is in units of the
            model's own keys, so one number suits few models.
        share: instead of the threshold, the share of the keys' energy (C0's trace) that the directions
            may hold together; it does not depend on the scale of the keys.

    Returns:
        U0, (d_in, r), orthonormal.

    Raises:
        SolveError: no eigenvalue is below the threshold, or even the smallest one exceeds the share.
    """
    values = spectrum.values
    if share is None:
        chosen = values < threshold
        wanted = f"not below null_threshold {threshold:g}"
    else:
        held = values.clamp(min=0).cumsum(0) / values.clamp(min=0).sum()
        chosen = held <= share
        wanted = f"{float(held[0]):.3g} of all, more than null_share {share:g}"
    if not chosen.any():
        raise SolveError(
            f"the keys use every direction: the smallest eigenvalue of C0 is {float(values[0]):.3g}, "
            f"{wanted}; raise it"
        )
    return spectrum.vectors[:, chosen]


def project(basis: Tensor, keys: Tensor, l2: float) -> Tensor:
    """Return S = U0 U0^T K / L2, (d_in, n)."""
    return basis @ (basis.T @ keys) / l2
