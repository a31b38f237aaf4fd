"""One rule for each ATen operator, by name without overload and without the in-place underscore."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from engine.errors import PluginError, nearest
from engine.speedup.rules import (
    convolution,
    dims,
    factories,
    indexing,
    joining,
    layers,
    normalization,
    patches,
    places,
    pointwise,
    products,
    reduction,
    shuffles,
    views,
)
from engine.speedup.trace import Rule

RULES: Mapping[str, Rule] = {
    **pointwise.RULES,
    **dims.RULES,
    **views.RULES,
    **places.RULES,
    **joining.RULES,
    **factories.RULES,
    **indexing.RULES,
    **patches.RULES,
    **shuffles.RULES,
    **convolution.RULES,
    **products.RULES,
    **layers.RULES,
    **normalization.RULES,
    **reduction.RULES,
}
#: Rules that may be asked for by name.
KINDS: Mapping[str, Rule] = {"pointwise": pointwise.pointwise, "spatial": reduction.spatial}
#: What a plugin may give for an operator or a module's class.
RuleLike = Rule | str


def all_rules(
    own: Mapping[str | type[nn.Module], RuleLike] | None,
) -> tuple[dict[str, Rule], tuple[type[nn.Module], ...]]:
    """Return the rules by operator with ``own`` added, and the classes that see zeros.

    Raises:
        PluginError: a key or value of ``own`` is none of those that are known.
    """
    rules, classes = dict(RULES), []
    for key, value in (own or {}).items():
        if isinstance(key, type) and issubclass(key, nn.Module) and value == "zeros":
            classes.append(key)
        elif isinstance(key, str) and callable(value):
            rules[key.removeprefix("aten::")] = value
        elif isinstance(key, str) and value in KINDS:
            rules[key.removeprefix("aten::")] = KINDS[str(value)]
        else:
            near = nearest(value, [*KINDS, "zeros"]) if isinstance(value, str) else None
            raise PluginError(
                f"no rule for speedup: {key!r}: {value!r}\n"
                '  needs: an operator\'s name with "pointwise", "spatial" or a function, or a '
                'module\'s class with "zeros"' + (f'\n  did you mean "{near}"?' if near else "")
            )
    return rules, tuple(classes)
