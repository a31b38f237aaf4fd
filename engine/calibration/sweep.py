"""Column by column: what a change of one weight costs is made up for by those not reached yet.

Frantar and Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in
One-Shot", arXiv 2301.00774, algorithm 1; Frantar et al. 2022, "GPTQ: Accurate Post-Training
Quantization for Generative Pre-trained Transformers", arXiv 2210.17323, algorithm 1; both after
Hassibi and Stork 1992, "Second order derivatives for network pruning: Optimal Brain Surgeon".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine.calibration.inputs import LayerInputs
from engine.errors import EngineError

#: Called where a step of columns begins: ``(first column, values now, their diagonal of U)``. It
#: returns what becomes of a column: ``(column, values now) -> values``. Values are (rows, columns
#: of the step) and (rows,); what a weight w costs is ``w^2 / U_jj^2``.
Choose = Callable[[int, Tensor, Tensor], Callable[[int, Tensor], Tensor]]

#: Columns whose updates are gathered before the rest of the matrix gets them.
_BLOCK = 128
#: Columns of a triangular matrix that are inverted together.
_INVERTED = 256
#: Rows whose error is summed at once.
_ROWS = 1024
#: How often a matrix that is not positive definite gets ten times the damping.
_TRIES = 4


class Swept(NamedTuple):
    """What a sweep made of a layer's weight.

    Attributes:
        weight: as :meth:`LayerInputs.weight`.
        damping: relative to the mean of the matrix's diagonal; None where the plain method was
            better on inputs kept apart.
        error: the squared error of the layer's outputs on inputs kept apart, relative to the sum of
            their squares.
        plain: the same of the plain method.
    """

    weight: Tensor
    damping: float | None
    error: float
    plain: float


def sweep(
    weight: Tensor,
    gram: Tensor,
    choose: Choose,
    *,
    damping: float = 0.01,
    step: int = _BLOCK,
    order: Tensor | None = None,
) -> Tensor:
    """Return ``weight`` with each column replaced by what ``choose`` makes of it, one by one.

    With U the upper Cholesky factor of the inverse of H = ``gram`` + lambda I, what column j lacks,
    e = (w - q) / U_jj, is taken off the columns after it: W[:, k] -= e U_jk.

    Args:
        weight: (rows, columns), float32 or wider.
        gram: (columns, columns), positive semidefinite: :meth:`LayerInputs.gram`.
        choose: asked at every ``step`` columns.
        damping: lambda relative to the mean of the diagonal of ``gram``.
        step: columns, at least 1.
        order: int64 (columns,), a permutation: the order in which columns are taken. ``choose``
            is still told of columns as they lie in ``weight``; its steps are of one column then.

    Returns:
        A new tensor.

    Raises:
        EngineError: H is not positive definite, also with a thousand times the damping.
    """
    if order is not None:
        places = order.tolist()

        def moved(start: int, values: Tensor, diagonal: Tensor) -> Callable[[int, Tensor], Tensor]:
            put = choose(places[start], values, diagonal)
            return lambda column, value: put(places[column], value)

        factor = InverseFactor(gram, damping, order)
        swept = _swept(weight[:, order], factor, moved, 1)
        return torch.empty_like(swept).index_copy_(1, order, swept)
    return _swept(weight.clone(), InverseFactor(gram, damping), choose, step)


def _swept(rest: Tensor, factor: InverseFactor, choose: Choose, step: int) -> Tensor:
    """Sweep over ``rest`` in place, and return it."""
    columns = rest.shape[1]
    block = max(_BLOCK // step, 1) * step
    for start in range(0, columns, block):
        end = min(start + block, columns)
        # Rows of what is worked on lie together: columns are touched one by one.
        work = rest[:, start:end].T.contiguous()
        errors = torch.empty_like(work)
        rows = factor.rows(start, end)
        own = rows[:, : end - start]
        diagonal = own.diagonal()
        put: Callable[[int, Tensor], Tensor] | None = None
        for j in range(end - start):
            if j % step == 0:
                of_step = slice(j, min(j + step, end - start))
                put = choose(start + j, work[of_step].T, diagonal[of_step])
            assert put is not None
            value = put(start + j, work[j])
            torch.sub(work[j], value, out=errors[j]).div_(own[j, j])
            work[j] = value
            if j + 1 < len(work):
                work[j + 1 :].addr_(own[j, j + 1 :], errors[j], alpha=-1)
        rest[:, start:end] = work.T
        if end < columns:
            rest[:, end:].addmm_(errors.T, rows[:, end - start :], alpha=-1)
    return rest


class InverseFactor:
    """The upper triangular U with U^T U the inverse of ``gram`` + lambda I.

    lambda is ``damping`` times the mean of the diagonal, ten times as much as long as that is not
    positive definite. With P the reversal of order and P H P = L L^T, U is P L^-1 P: one
    decomposition and one triangular inverse, both in the memory of one matrix.

    Args:
        gram: (columns, columns), symmetric.
        damping: above 0.
        order: a permutation of columns that U is of; as they are without it.

    Raises:
        EngineError: it holds NaN or infinity, or no damping that was tried is enough.
    """

    def __init__(self, gram: Tensor, damping: float, order: Tensor | None = None) -> None:
        self._size = len(gram)
        mean = float(gram.diagonal().mean())
        if not math.isfinite(mean) or not all(bool(r.isfinite().all()) for r in gram.split(_BLOCK)):
            raise EngineError("the layer's inputs hold NaN or infinity")
        if mean <= 0:
            self._reversed = torch.eye(self._size, dtype=gram.dtype, device=gram.device)
            return
        places = torch.arange(self._size, device=gram.device) if order is None else order
        backwards = places.flip(0)
        self._reversed = torch.empty_like(gram, memory_format=torch.contiguous_format)
        failed = torch.empty((), dtype=torch.int32, device=gram.device)
        for attempt in range(_TRIES):
            for rows, into in zip(
                backwards.split(_BLOCK), self._reversed.split(_BLOCK), strict=True
            ):
                into.copy_(gram[rows][:, backwards])
            self._reversed.diagonal().add_(damping * 10**attempt * mean)
            lower = self._reversed.T  # column by column, as LAPACK works in place
            torch.linalg.cholesky_ex(lower, out=(lower, failed))
            if not bool(failed):
                _invert(lower)
                if all(bool(rows.isfinite().all()) for rows in self._reversed.split(_BLOCK)):
                    self._reversed = lower
                    return
        raise EngineError(
            "the inputs' matrix of products is not positive definite, also with a thousand times "
            f"the damping of {damping:g}\n  give more, or more different, calibration inputs"
        )

    def rows(self, start: int, end: int) -> Tensor:
        """Return some rows of U, from their first column that is not zero: U[start:end, start:]."""
        size = self._size
        return self._reversed[size - end : size - start, : size - start].flip(0, 1)


def _invert(lower: Tensor) -> None:
    """Invert a lower triangular matrix in place, block by block from the last column."""
    size = len(lower)
    for start in range((size - 1) // _INVERTED * _INVERTED, -1, -_INVERTED):
        end = min(start + _INVERTED, size)
        own = lower[start:end, start:end]
        eye = torch.eye(end - start, dtype=lower.dtype, device=lower.device)
        own.copy_(torch.linalg.solve_triangular(own, eye, upper=False))
        if end < size:
            below = lower[end:, start:end]
            # What lies below and to the right is inverted already.
            below.copy_(-(lower[end:, end:] @ (below @ own)))


def squared_error(change: Tensor, gram: Tensor) -> float:
    """Return the squared error of a layer's outputs whose weight is off by ``change``.

    Args:
        change: (..., rows, columns).
        gram: (..., columns, columns): :meth:`LayerInputs.gram`.
    """
    total = 0.0
    for some in change.split(_ROWS, -2):  # products take as much memory as what is multiplied
        total += float(((some @ gram) * some).sum(dtype=torch.float64))
    return max(total, 0.0)


def best_sweep(
    inputs: LayerInputs,
    plain: Callable[[Tensor], Tensor],
    choose: Callable[[int], Choose],
    *,
    dampings: Sequence[float],
    step: int = _BLOCK,
    largest_first: bool = False,
) -> Swept:
    """Return the sweep with the damping that suits inputs kept apart best, made of all inputs.

    Where no sweep is better there than the plain method, that is what becomes of the layer; layers
    with groups are swept group by group.

    Args:
        inputs: the layer's.
        plain: what the method without second order makes of the weight, as
            :meth:`LayerInputs.weight`.
        choose: :data:`Choose` for the group of that number, fresh for each sweep.
        dampings: what is tried, each relative to the mean of the diagonal. One alone is taken
            as it is.
        step: see :func:`sweep`.
        largest_first: take columns in the order of their mean squares, the largest first.

    Raises:
        EngineError: see :func:`sweep` and :meth:`LayerInputs.gram`.
    """
    weight = inputs.weight()
    groups = weight if weight.dim() == 3 else weight[None]

    def swept(gram: Tensor, damping: float) -> Tensor:
        grams = gram if gram.dim() == 3 else gram[None]
        made = [
            sweep(
                own,
                each,
                choose(number),
                damping=damping,
                step=step,
                order=each.diagonal().argsort(descending=True) if largest_first else None,
            )
            for number, (own, each) in enumerate(zip(groups, grams, strict=True))
        ]
        return torch.stack(made).view(*weight.shape[:-2], -1, weight.shape[-1])

    return best_damped(inputs, plain, swept, dampings=dampings)


def best_damped(
    inputs: LayerInputs,
    plain: Callable[[Tensor], Tensor],
    made: Callable[[Tensor, float], Tensor],
    *,
    dampings: Sequence[float],
) -> Swept:
    """Return what ``made`` makes with the damping that suits inputs kept apart best, of all inputs.

    Where none is better there than the plain method, that is what becomes of the layer.

    Args:
        inputs: the layer's.
        plain: what the method without second order makes of the weight, as
            :meth:`LayerInputs.weight`.
        made: what becomes of the weight, given :meth:`LayerInputs.gram` and a damping.
        dampings: what is tried, in this order, each relative to the mean of the diagonal. One alone
            is taken as it is.
    """
    weight = inputs.weight()
    if len(dampings) > 1:
        fitted, apart = inputs.fitted.gram(), inputs.apart.gram()
    if len(dampings) == 1 or not inputs.apart.samples or not inputs.fitted.samples:
        gram = inputs.gram()
        whole = squared_error(weight, gram) or 1.0
        error_of_plain = squared_error(plain(weight).sub_(weight), gram) / whole
        value = made(gram, dampings[0])
        error = squared_error(weight.sub_(value), gram) / whole
        return Swept(value, dampings[0], error, error_of_plain)
    whole = squared_error(weight, apart) or 1.0
    easy = plain(weight)
    error_of_plain = squared_error(easy - weight, apart) / whole
    found = {}
    for damping in dampings:
        value = made(fitted, damping)
        found[damping] = squared_error(value - weight, apart) / whole
        if len(found) > 1 and found[damping] > min(found.values()):
            break  # dampings are tried in order, and the error has one valley
    best = min(found, key=lambda damping: found[damping])
    if found[best] >= error_of_plain:
        return Swept(easy, None, error_of_plain, error_of_plain)
    return Swept(made(inputs.gram(), best), best, found[best], error_of_plain)
