"""Masks that are asked of an algorithm, checked, and held in place while training goes on.

Masks are multiplied into the weights in place, all at once, right after each optimizer step; the
forward pass knows nothing of them. A pruner that needs the dense weights beneath its masks sets
``straight_through``: then the layer computes ``weight * mask``, the gradient reaches every weight
unmasked, and what was removed can come back. Such a mask is soft; it is baked into the weights by
``export_model``, ``apply_speedup`` and ``unwrap(bake=True)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from engine.attach.checkpoint import load_model
from engine.attach.compressor import Compressor
from engine.attach.computed import make_parameter
from engine.attach.parametrized import is_parametrized
from engine.attach.wrapper import Wrapper
from engine.calibration import Calibrated
from engine.errors import PluginError
from engine.plugins import registry
from engine.plugins.blame import Verify, at_fault
from engine.plugins.stack import Stack, describe
from engine.pruning.companions import Companion, KeptRows
from engine.pruning.masking import (
    Asked,
    MaskedGradients,
    MasksInPlace,
    NewMasks,
    agree_between_processes,
    calculated,
    calibrated,
    checked_masks,
    expanded_masks,
    fraction,
    hold,
    in_config,
    let_go,
    put_in_place,
    tied_layers,
)

if TYPE_CHECKING:
    from engine.speedup import SpeedupReport


class MaskHolder(Compressor):
    """Asks the stack for masks when they are due, and keeps what they remove at zero.

    Attributes:
        one_shot: a mask stands until the asked sparsity changes. Otherwise ``calc_mask`` is called
            after every optimizer step.
        straight_through: keep the dense weights beneath the mask, see the module's docstring.
        dense_gradients: whether gradients of removed weights are left as backward makes them. None:
            they are where masks are made anew after every step, or are soft; where a mask stands
            (``one_shot``) they are zero, and no norm of gradients counts them. Where any plugin of
            a stack says True, they are left.
    """

    kind = "pruning"
    one_shot: ClassVar[bool] = False
    straight_through: ClassVar[bool] = False
    dense_gradients: ClassVar[bool | None] = None
    #: Let layers that are bound together lose the same filters; an argument of filter pruners.
    dependency_aware: bool = False

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        self._due = True
        self._trained = False
        self._epochs_told = 0
        self._in_place = MasksInPlace()
        self._tied = tied_layers(self.wrappers, describe(self))
        #: Parameters of other layers that are masked with the filters before them.
        self.companions: list[Companion] = []
        #: The fraction asked of each layer in this round of masks, by the wrapper's id.
        self.asked: dict[int, float] = {}
        #: What the last :meth:`apply_speedup` did.
        self.speedup_report: SpeedupReport | None = None
        #: How many rounds of masks there were.
        self.mask_round = 0

    def compress(self) -> nn.Module:
        """Attach, compute the first masks and apply them; return the same model."""
        if self._stack is None:
            self._trained = False
        return super().compress()

    def _when_attached(self) -> None:
        self.update_masks()

    def unwrap(self, *, bake: bool = False) -> nn.Module:
        """Detach from the model.

        When nothing was trained since :meth:`compress` the weights that masks removed are put
        back, so that the model is exactly as it was found; weights that were replaced in between
        are left alone. After training, or with ``bake=True``,
        masked weights stay zero (``straight_through`` pruners have dense weights to give back, and
        do unless ``bake=True``; so it is where parametrizations of PyTorch's compute the weight,
        which then becomes a plain parameter).
        """
        if bake:
            self._bake()
        return super().unwrap(bake=bake or self._trained)

    @torch.no_grad()
    def load_model_state_dict(self, model_state: Mapping[str, Any]) -> None:
        """Load a plain ``state_dict`` of the model, then apply masks again.

        What the masks of now remove of it is put back if other masks are loaded before training
        goes on: the order of this and :meth:`load_state_dict` does not matter.

        Raises:
            CheckpointError: keys or shapes differ; the model is unchanged.
        """
        load_model(self.bound_model, model_state)
        self._trained = False
        self._weights_replaced()

    @torch.no_grad()
    def update_masks(self, *, every_layer: bool = False) -> None:
        """Ask for the masks that are due, then replace and apply them all at once.

        Args:
            every_layer: also where the asked sparsity has not changed.

        Raises:
            PluginError: the algorithm failed or returned something that is no mask; no mask was
                changed.
        """
        stack = self._stack
        if stack is None:
            raise PluginError(f"{describe(self)}: call compress() before masks are updated")
        ask, calculate = stack.resolve("sparsity"), stack.resolve("calc_mask")
        assert ask is not None
        provider = stack.provider("calc_mask") or stack.provider("calibrate_layer")
        one_shot = getattr(provider, "one_shot", False) or calculate is None
        asked = [
            (index, wrapper, fraction(target, self, wrapper))
            for index, wrapper in enumerate(self.wrappers)
            if id(wrapper) not in self._tied and (target := ask(wrapper, self.epoch)) is not None
        ]
        self.asked = {id(wrapper): target for _, wrapper, target in asked}
        self.mask_round += 1
        if not (every_layer or not one_shot):
            asked = [each for each in asked if each[1].sparsity != each[2]]
        walked = self._calibrated(stack, asked)
        known = {id(each.wrapper) for each in walked}
        rest = [each for each in asked if id(each[1]) not in known]
        fresh, waiting = calculated(calculate, provider, rest)
        fresh = [*walked, *fresh]
        put_in_place(fresh, self.wrappers, self._tied)
        self._due = waiting or not one_shot
        agree_between_processes([masks for _, _, masks in fresh])
        self._refresh_companions()
        self.apply_masks()
        if fresh and self.finds_sparsity:
            self._note_sparsity()
        if fresh:
            self._tell("masks_updated", self)

    @property
    def finds_sparsity(self) -> bool:
        """Whether the sparsity is an outcome, as ``x-engine.sparsity`` of the schema says."""
        return self.plugin is not None and self.plugin.finds_sparsity

    def _note_sparsity(self) -> None:
        """Let ``wrapper.sparsity`` be what masks remove; a device is waited for once."""
        masks = [(w, mask) for w in self.wrappers if (mask := w.mask("weight")) is not None]
        shares = [1 - mask.mean(dtype=torch.float32) for _, mask in masks]
        for (wrapper, _), share in zip(masks, torch.stack(shares).tolist(), strict=True):
            wrapper.sparsity = share

    def apply_masks(self) -> None:
        """Multiply the masks into the parameters, in place, all at once.

        After the step of one optimizer of several, those that the others train are left to these.

        Where masks are soft (``straight_through``) the layer computes its masked weight; biases and
        what is masked along with filters, such as norms, are masked in place there, too.
        """
        in_place = self._in_place
        in_place.update(self.wrappers, self._masked_in_place, self.companions)
        values, masks = in_place.values, in_place.masks
        if self._hooks is not None and self._hooks.spared:
            spared = self._hooks.spared
            kept = [n for n, p in enumerate(in_place.parameters) if id(p) not in spared]
            values, masks = [values[n] for n in kept], [masks[n] for n in kept]
        if not masks:
            return
        if self._trained:
            torch._foreach_mul_(values, masks)
            return
        with self._changes.noting(in_place.parameters):
            torch._foreach_mul_(values, masks)

    def _calibrated(self, stack: Stack, asked: Sequence[Asked]) -> list[NewMasks]:
        """Return what a one-shot algorithm makes of the layers, given batches."""
        calibrate = stack.resolve("calibrate_layer")
        if calibrate is None or self.batches is None:
            return []
        data = Calibrated(self.batches, self.forward, self.states_folder)
        return calibrated(calibrate, self, stack.provider("calibrate_layer"), asked, data)

    def own_mask(self, wrapper: Wrapper, sparsity: float) -> dict[str, Tensor] | None:
        """Return the algorithm's own masks of a layer, checked, without constraints around it.

        For extensions that wrap ``calc_mask`` and need to know of layers beside the one that they
        were called for. None: the algorithm does not know yet.
        """
        assert self._stack is not None
        calculate = self._stack.provided("calc_mask")
        assert calculate is not None
        index = next(i for i, each in enumerate(self.wrappers) if each is wrapper)
        with in_config([(index, wrapper, sparsity)]):
            masks = calculate(wrapper, sparsity, index)
        provider = self._stack.provider("calc_mask")
        return None if masks is None else checked_masks(masks, wrapper, provider)

    def _own_extensions(self) -> Iterable[object]:
        if self.dependency_aware:
            yield registry.find("dependency_aware", registry.EXTENSIONS).load()()

    def _require(self, stack: Stack) -> None:
        if stack.provider("calc_mask") is None and stack.provider("calibrate_layer") is not None:
            if stack.has("calc_mask"):
                raise at_fault(
                    self,
                    "makes its masks in calibrate_layer, and an extension of the stack changes "
                    "those of calc_mask\n  leave the extension out; N:M patterns are an argument "
                    "of such algorithms",
                    hook="calibrate_layer",
                )
        elif stack.provider("calc_mask") is None:
            close = [n for n in dir(type(self)) if n.startswith("calc") and n != "calc_mask"]
            hint = f'\n  did you mean "{close[0]}" to be calc_mask?' if close else ""
            raise at_fault(
                self, f"has no calc_mask, which every pruner needs{hint}", hook="calc_mask"
            )

    def _verifiers(self) -> Mapping[str, Verify]:
        return {
            "calc_mask": lambda masks, plugin, wrapper, *_: expanded_masks(masks, wrapper, plugin),
            "sparsity": fraction,
        }

    def _attach(self, stack: Stack) -> None:
        self._tied = tied_layers(self.wrappers, describe(self))
        hold(self.wrappers, describe(self), straight_through=self.straight_through)
        self._in_place.clear()
        if not self._leaves_gradients(stack):
            self._in_place.gradients = MaskedGradients()

    def _detach(self) -> None:
        let_go(self.wrappers)
        self._in_place.clear()

    @property
    def _masked_in_place(self) -> tuple[str, ...]:
        return ("bias",) if self.straight_through else ("weight", "bias")

    def _leaves_gradients(self, stack: Stack) -> bool:
        if self.straight_through or any(
            getattr(plugin, "dense_gradients", None) for plugin in stack.plugins
        ):
            return True
        provider = stack.provider("calc_mask")
        stated = getattr(provider, "dense_gradients", None)
        return not getattr(provider, "one_shot", False) if stated is None else bool(stated)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_in_place": MasksInPlace()}

    def _optimizer_stepped(self) -> None:
        if not self._trained:
            self._trained = True
            self._changes.clear()
        # Masks that are due are made from masked weights: the optimizer moves removed ones too.
        self.apply_masks()
        if self._due:
            self.update_masks()

    def _weights_replaced(self) -> None:
        if self._stack is not None:
            self.apply_masks()

    def _state_replaced(self) -> None:
        # What masks removed until now is not what the restored ones remove.
        self._changes.put_back()
        self._due = True
        self._refresh_companions()
        self._weights_replaced()

    def _tell(self, hook: str, *arguments: Any) -> None:
        try:
            super()._tell(hook, *arguments)
        finally:
            if hook == "update_epoch":
                self._due = True
                self._epochs_told += 1

    def _refresh_companions(self) -> None:
        kept = KeptRows()
        for companion in self.companions:
            companion.refresh(kept)

    @torch.no_grad()
    def _bake(self) -> None:
        for wrapper in self.wrappers:
            mask = wrapper.mask("weight")
            if self._stack is None or mask is None:
                continue
            if is_parametrized(wrapper.module):
                make_parameter(wrapper.module, wrapper.weight * mask)
            else:
                wrapper.weight.mul_(mask)
