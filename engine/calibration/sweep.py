"""Column by column: what a change of one weight costs is made up for by those not reached yet.

Frantar and Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in
One-Shot", arXiv 2301.00774, algorithm 1; Frantar et al. 2022, "GPTQ: Accurate Post-Training
Quantization for Generative Pre-trained Transformers", arXiv 2210.17323, algorithm 1; both after
Hassibi and Stork 1992, "Second order derivatives for network pruning: Optimal Brain Surgeon".
"""

from __future__ import annotations

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

        swept = sweep(weight[:, order], gram[order][:, order], moved, damping=damping, step=1)
        return torch.empty_like(swept).index_copy_(1, order, swept)
    rest = weight.clone()
    factor = inverse_factor(gram, damping)
    diagonal = factor.diagonal()
    columns = rest.shape[1]
    block = max(_BLOCK // step, 1) * step
    for start in range(0, columns, block):
        end = min(start + block, columns)
        # Rows of what is worked on lie together: columns are touched one by one.
        work = rest[:, start:end].T.contiguous()
        errors = torch.empty_like(work)
        own = factor[start:end, start:end]
        put: Callable[[int, Tensor], Tensor] | None = None
        for j in range(end - start):
            if j % step == 0:
                of_step = slice(j, min(j + step, end - start))
                put = choose(start + j, work[of_step].T, diagonal[start:end][of_step])
            assert put is not None
            value = put(start + j, work[j])
            torch.sub(work[j], value, out=errors[j]).div_(own[j, j])
            work[j] = value
            if j + 1 < len(work):
                work[j + 1 :].addr_(own[j, j + 1 :], errors[j], alpha=-1)
        rest[:, start:end] = work.T
        if end < columns:
            rest[:, end:].addmm_(errors.T, factor[start:end, end:], alpha=-1)
    return rest


def inverse_factor(gram: Tensor, damping: float) -> Tensor:
    """Return the upper triangular U with U^T U the inverse of ``gram`` + lambda I.

    lambda is ``damping`` times the mean of the diagonal, ten times as much as long as that is not
    positive definite. With P the reversal of order and P H P = L L^T, U is P L^-1 P: one
    decomposition and one triangular inverse.

    Args:
        gram: (columns, columns), symmetric.
        damping: above 0.

    Raises:
        EngineError: it holds NaN or infinity, or no damping that was tried is enough.
    """
    if not bool(gram.isfinite().all()):
        raise EngineError("the layer's inputs hold NaN or infinity")
    mean = float(gram.diagonal().mean())
    if mean <= 0:
        return torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for attempt in range(_TRIES):
        reversed_ = gram.flip(0, 1)
        reversed_.diagonal().add_(damping * 10**attempt * mean)
        lower, failed = torch.linalg.cholesky_ex(reversed_)
        if not bool(failed):
            eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
            inverse: Tensor = torch.linalg.solve_triangular(lower, eye, upper=False)
            if bool(inverse.isfinite().all()):
                return inverse.flip(0, 1)
    raise EngineError(
        "the inputs' matrix of products is not positive definite, also with a thousand times the "
        f"damping of {damping:g}\n  give more, or more different, calibration inputs"
    )


def squared_error(change: Tensor, gram: Tensor) -> float:
    """Return the squared error of a layer's outputs whose weight is off by ``change``.

    Args:
        change: (..., rows, columns).
        gram: (..., columns, columns): :meth:`LayerInputs.gram`.
    """
    return max(float(((change @ gram) * change).sum(dtype=torch.float64)), 0.0)


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
    if len(dampings) == 1 or not inputs.apart.samples or not inputs.fitted.samples:
        gram = inputs.gram()
        whole = squared_error(weight, gram) or 1.0
        value, easy = made(gram, dampings[0]), plain(weight)
        errors = [squared_error(each - weight, gram) / whole for each in (value, easy)]
        return Swept(value, dampings[0], *errors)
    fitted, apart = inputs.fitted.gram(), inputs.apart.gram()
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
