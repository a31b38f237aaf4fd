"""One rule for each ATen operator, by name without overload and without the in-place underscore."""

from __future__ import annotations

from collections.abc import Mapping

from engine.speedup.rules import (
    contraction,
    dims,
    factories,
    indexing,
    joining,
    normalization,
    patches,
    places,
    pointwise,
    reduction,
    views,
)
from engine.speedup.tracer import Rule

RULES: Mapping[str, Rule] = {
    **pointwise.RULES,
    **dims.RULES,
    **views.RULES,
    **places.RULES,
    **joining.RULES,
    **factories.RULES,
    **indexing.RULES,
    **patches.RULES,
    **contraction.RULES,
    **normalization.RULES,
    **reduction.RULES,
}
