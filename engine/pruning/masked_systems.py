"""Least squares where each filter keeps other weights: all filters at once, by one Gram matrix.

Each filter has a system of its own, (G + h I) restricted to what it keeps, and decomposing them all
costs rows * columns^3. Conjugate gradients on all filters together cost one product with G a step.
What makes the steps few is a preconditioner of rank r: G = U L U^T + diag(s) roughly, with the
largest eigenvectors U, and by the Woodbury identity that is inverted for every choice of columns by
matrices of r x r (Hestenes and Stiefel 1952; Frangella, Tropp, Udell 2021, "Randomized Nyström
Preconditioning", arXiv 2110.02820, the idea of section 1.3).
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Eigenvectors of the preconditioner.
_RANK = 128
#: Filters that are solved together.
_FILTERS = 512
#: A filter is done when its error, in the norm of its system, is this part of the solution.
_TOLERANCE = 1e-6
_STEPS = 200
#: How many products with the Gram matrix conjugate gradients take, for a guess of what is cheaper.
_USUAL = 40


def is_cheaper(systems: list[int], filters: int, columns: int) -> bool:
    """Return whether :func:`solve_masked` costs less than decomposing systems of these sizes."""
    return sum(size**3 / 3 for size in systems) > _USUAL * filters * columns**2


def solve_masked(
    gram: Tensor, wanted: Tensor, kept: Tensor, held: Tensor
) -> tuple[Tensor, list[int]]:
    """Return for each filter the solution of its own system, and which filters have none yet.

    Row i of the result solves ``(G + h_i I) d = w_i`` on the columns that filter i keeps, and is
    zero elsewhere, up to a relative error of 1e-6 in the norm of the system.

    Args:
        gram: (columns, columns), positive semidefinite, float64. Unchanged.
        wanted: (filters, columns).
        kept: bool (filters, columns).
        held: (filters,), above 0.

    Returns:
        (filters, columns); and numbers of filters that did not come so far in 200 steps: these
        are to be solved otherwise.
    """
    basis, values = _largest(gram)
    rest = (gram.diagonal() - (basis.square() @ values)).clamp_(min=0)
    change = torch.zeros_like(wanted)
    open_: list[int] = []
    for some in torch.arange(len(wanted), device=wanted.device).split(_FILTERS):
        part = _Preconditioner(basis, values, rest, kept[some], held[some])
        change[some], late = _conjugate(gram, wanted[some], kept[some], held[some], part)
        open_ += some[late].tolist()
    return change, open_


class _Preconditioner:
    """(U L U^T + diag(s + h)) of the columns that each filter keeps, inverted."""

    def __init__(
        self, basis: Tensor, values: Tensor, rest: Tensor, kept: Tensor, held: Tensor
    ) -> None:
        self._basis = basis
        self._inverse = kept / (rest + held[:, None])
        rank = basis.shape[1]
        inner = torch.empty(len(kept), rank, rank, dtype=basis.dtype, device=basis.device)
        for place in range(rank):
            inner[:, place] = self._inverse @ (basis * basis[:, place : place + 1])
        inner.diagonal(dim1=1, dim2=2).add_(1 / values)
        self._inner = torch.cholesky_inverse(torch.linalg.cholesky(inner))

    def __call__(self, residual: Tensor) -> Tensor:
        """Return what the inverse makes of the filters' residuals."""
        scaled = residual * self._inverse
        inner = torch.bmm(self._inner, (scaled @ self._basis)[..., None])[..., 0]
        return scaled - self._inverse * (inner @ self._basis.T)

    def keep(self, own: Tensor) -> None:
        """Let go of filters that are done."""
        self._inverse, self._inner = self._inverse[own], self._inner[own]


def _conjugate(
    gram: Tensor, wanted: Tensor, kept: Tensor, held: Tensor, inverse: _Preconditioner
) -> tuple[Tensor, Tensor]:
    """Return solutions, and which filters are not done, bool."""
    found = torch.zeros_like(wanted)
    open_ = torch.ones(len(wanted), dtype=torch.bool, device=wanted.device)
    rows = torch.arange(len(wanted), device=wanted.device)
    residual, solution = wanted * kept, torch.zeros_like(wanted)
    made = inverse(residual)
    direction = made.clone()
    size = (residual * made).sum(1)
    gained = torch.zeros_like(size)
    going = size > 0
    for _ in range(_STEPS):
        # What is done goes on at no step, until it is worth while to move the others together.
        if int(going.sum()) < 0.7 * len(rows):
            found[rows], open_[rows] = solution, going
            rows, residual, solution, direction = (
                each[going] for each in (rows, residual, solution, direction)
            )
            kept, held, size, gained = (each[going] for each in (kept, held, size, gained))
            inverse.keep(going)
            going = going[going]
            if not len(rows):
                break
        product = torch.addcmul((direction @ gram).mul_(kept), held[:, None], direction)
        step = torch.where(going, size / (direction * product).sum(1), 0.0)
        solution.addcmul_(step[:, None], direction)
        residual.addcmul_(step[:, None], product, value=-1)
        # The energy of the solution is the sum of what each step gains (Strakos and Tichy 2002).
        gained += step * size
        made = inverse(residual)
        new = (residual * made).sum(1)
        direction.mul_(torch.where(going, new / size, 0.0)[:, None]).add_(made)
        going &= ~(new <= _TOLERANCE**2 * gained)
        size = new
    found[rows], open_[rows] = solution, going
    return found, open_ | ~found.isfinite().all(1)


def _largest(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return about the largest eigenvectors, (columns, rank), and their values, above 0."""
    rank = max(min(_RANK, len(gram) // 8), 1)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(len(gram), rank, generator=generator, dtype=gram.dtype).to(gram.device)
    basis = torch.linalg.qr(drawn).Q
    for _ in range(4):
        basis = torch.linalg.qr(gram @ basis).Q
    values, turned = torch.linalg.eigh(basis.T @ gram @ basis)
    some = values > values.max().clamp(min=torch.finfo(gram.dtype).tiny) * 1e-9
    if not bool(some.any()):
        some[-1] = True
        values = values.clamp(min=1.0)
    return basis @ turned[:, some], values[some]
