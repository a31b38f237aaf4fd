"""Base of the extensions that decide over filters of several layers at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engine.attach.parametrized import is_parametrized, refusal
from engine.attach.wrapper import Wrapper
from engine.errors import ConfigError, EngineError, PluginError, Problem
from engine.hookspecs import hookimpl
from engine.plugins.blame import describe
from engine.pruning.bound import Group, bound_groups
from engine.pruning.channels import Channels
from engine.pruning.masks import prune_count, wide
from engine.pruning.pruner import Pruner
from engine.pruning.structured import FilterPruner
from engine.user_code.example import arguments_of


class Ranking:
    """What a pruner says of one layer's filters.

    Attributes:
        importance: (filters,), larger is kept longer.
        removed: how many filters the pruner's own mask removes.
    """

    def __init__(self, importance: Tensor, removed: int) -> None:
        self.importance = importance
        self.removed = removed


class GroupConstraint:
    """Replaces a filter pruner's masks by masks that remove whole shared channels.

    A subclass implements :meth:`decide`. Masks of layers that share no channel with anything that
    can be removed stay the pruner's own. What else belongs to a removed channel (the norm's scale
    and shift) is masked with it, so that nothing of the channel is left.

    Args:
        round_to: keep a multiple of this many filters in each layer, where that is possible.
        dummy_input: example inputs; by default the pruner's own ``dummy_input``.
        graph_module: look for channels in the model's graph, where sizes that are literals in its
            code follow them; for ``apply_speedup(graph_module=True)``.
    """

    name = "constraint"

    def __init__(
        self, round_to: int = 1, dummy_input: Any = None, graph_module: bool = False
    ) -> None:
        self.round_to = round_to
        self.graph_module = graph_module
        self.dummy_input = dummy_input
        self.groups: list[Group] = []
        self.model: nn.Module | None = None
        self.example: tuple[Any, Mapping[str, Any] | None] = ((), None)
        self._pruner: Pruner | None = None
        self._round = -1
        self._masks: dict[int, Tensor | None] = {}

    def decide(self, rankings: Sequence[Sequence[Ranking]]) -> list[Tensor]:
        """Return for each of ``self.groups`` which shared channels stay, bool (channels,).

        Args:
            rankings: by group, by member.
        """
        raise NotImplementedError

    @hookimpl
    def preprocess_model(self, compressor: Any, model: nn.Module) -> None:
        """Find the groups, on the dense model."""
        if getattr(compressor, "finds_sparsity", False):
            raise PluginError(
                f"{self.name}: {compressor.plugin_name} finds its sparsity itself, and how many "
                "channels go together follows from one that is asked\n  leave the extension out"
            )
        example = self.dummy_input if self.dummy_input is not None else compressor.dummy_input
        if example is None:
            problem = Problem(
                f"{self.name} runs the model and needs example inputs",
                "/dummy_input",
                None,
                "give the pruner dummy_input=: a tensor, a tuple, or a dict of keyword arguments",
            )
            raise ConfigError([problem], type(compressor).__name__)
        for wrapper in compressor.wrappers:
            if is_parametrized(wrapper.module):
                raise EngineError(f"{self.name}: {refusal(wrapper.name)}")
        self._pruner = compressor
        self.model = model
        self.example = args, kwargs = arguments_of(example)
        from engine.speedup import SpeedupError, as_graph_module

        try:
            traced = as_graph_module(model, args, kwargs) if self.graph_module else model
            self.groups = bound_groups(traced, compressor.wrappers, args, kwargs)
        except (PluginError, ConfigError, SpeedupError):
            raise
        except Exception as error:
            problem = Problem(
                f"the model does not run on the example inputs: {type(error).__name__}: {error}",
                "/dummy_input",
            )
            raise ConfigError([problem], type(compressor).__name__) from error
        compressor.companions = [c for group in self.groups for c in group.companions]

    @hookimpl
    def restore_model(self, compressor: Any, model: nn.Module) -> None:
        """Forget the model."""
        if self._pruner is not None and (scorer := self._scorer(self._pruner)) is not None:
            scorer.ranked.clear()
        compressor.companions = []
        self.groups, self.model, self._pruner, self._round = [], None, None, -1

    @hookimpl(wrapper=True)
    def calc_mask(self, wrapper: Wrapper) -> Any:
        """Return the pruner's mask, or the one that goes with the layers bound to this one."""
        if self._pruner is not None and self._pruner.mask_round != self._round:
            # Before the pruner is asked: it is told what it has said of its filters already.
            self._round = self._pruner.mask_round
            self._masks = self._all_masks()
        own = yield
        if own is None or self._pruner is None:
            return own
        if id(wrapper) not in self._masks:
            return own
        kept = self._masks[id(wrapper)]
        if kept is None:
            return None
        masks = {"weight_mask": Channels(wrapper.module).spread(kept)}
        if wrapper.bias is not None:
            masks["bias_mask"] = kept.view_as(wrapper.bias)
        return masks

    def asked(self) -> float:
        """Return the fraction that is asked of all layers alike.

        Raises:
            ConfigError: different fractions are asked of different layers.
        """
        assert self._pruner is not None
        fractions = {
            self._pruner.asked[id(member)]: member.name
            for group in self.groups
            for member in group.members
            if id(member) in self._pruner.asked
        }
        if len(fractions) > 1:
            found = " and ".join(f'{f:g} of "{name}"' for f, name in list(fractions.items())[:2])
            problem = Problem(
                f"{self.name} ranks all layers together, but {found} is asked",
                "/config_list",
                None,
                "give all layers one sparsity: the fraction of the whole model",
            )
            raise ConfigError([problem], type(self._pruner).__name__)
        return next(iter(fractions), 0.0)

    def _of_single_weights(self, pruner: Pruner, wrapper: Wrapper) -> ConfigError:
        """Return the error for a pruner whose masks say nothing of whole filters."""
        problem = Problem(
            f'{describe(pruner)} removes single weights of layer "{wrapper.name}", and {self.name} '
            "decides over whole filters: nothing would be removed",
            "/extensions",
            None,
            "allowed: a pruner that removes whole filters, such as l1_filter, l2_filter or fpgm",
        )
        return ConfigError([problem], type(pruner).__name__)

    def _all_masks(self) -> dict[int, Tensor | None]:
        assert self._pruner is not None
        scorer = self._scorer(self._pruner)
        if scorer is not None:
            scorer.ranked.clear()
        rankings = [[self._ranking(member) for member in group.members] for group in self.groups]
        known = [list(filter(None, ranking)) for ranking in rankings]
        if any(len(k) < len(r) for k, r in zip(known, rankings, strict=True)):
            return {id(member): None for group in self.groups for member in group.members}
        return {
            id(member): mask.to(member.device)
            for group, kept in zip(self.groups, self.decide(known), strict=True)
            for member, mask in zip(group.members, group.masks(kept), strict=True)
        }

    @staticmethod
    def _scorer(pruner: Pruner) -> FilterPruner | None:
        """Return the plugin of the stack that ranks filters and makes its masks of that alone."""
        scorer = next((p for p in pruner._participants() if isinstance(p, FilterPruner)), None)
        plain = scorer is not None and type(scorer).calc_mask is FilterPruner.calc_mask
        return scorer if plain else None

    def _ranking(self, wrapper: Wrapper) -> Ranking | None:
        """Return the pruner's opinion of a layer, from its scores or from its mask."""
        pruner = self._pruner
        assert pruner is not None
        target = pruner.asked.get(id(wrapper), wrapper.sparsity or 0.0)
        channels = Channels(wrapper.module)
        scorer = self._scorer(pruner)
        importance: Tensor | None
        if scorer is not None:
            importance = scorer.filter_importance(wrapper, channels)
            if importance is None:
                return None
            scorer.ranked[id(wrapper)] = importance
            removed = prune_count(channels.count, target)
        else:
            masks = pruner.own_mask(wrapper, target)
            if masks is None or "weight_mask" not in masks:
                return None
            rows = channels.rows(masks["weight_mask"]) != 0
            kept = rows.any(dim=1)
            if bool((rows.all(dim=1) != kept).any()):
                raise self._of_single_weights(pruner, wrapper)
            removed = int((~kept).sum())
            # Filters that the mask keeps come after those that it removes, by their norm.
            norms = wide(channels.rows(wrapper.weight.detach())).norm(dim=1)
            importance = kept + norms / (norms.max() * 2).clamp(min=torch.finfo(norms.dtype).tiny)
        current = wrapper.mask("weight")
        if current is not None:
            gone = channels.left(current).logical_not()
            importance = importance.masked_fill(gone, -torch.inf)
        return Ranking(importance, removed)
