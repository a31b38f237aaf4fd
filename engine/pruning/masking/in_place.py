"""Which parameters are masked in place, and with what: looked up once, kept while it stays true."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from engine.attach.wrapper import Wrapper
from engine.pruning.masking.gradients import MaskedGradients


class MaskedParameter(Protocol):
    """A companion, as it is known here: a parameter that is masked along with filters."""

    @property
    def parameter(self) -> Tensor | None:
        """The parameter."""

    mask: Tensor | None


class MasksInPlace:
    """The masks of one pruner that are multiplied into parameters.

    Attributes:
        parameters: those that have a mask.
        values: theirs, to be changed in place: the same memory, which autograd does not follow.
        masks: theirs, in this order, each on its parameter's device.
        gradients: what masks their gradients, too; None: they are left.
    """

    def __init__(self) -> None:
        self.gradients: MaskedGradients | None = None
        self.parameters: list[Tensor] = []
        self.values: list[Tensor] = []
        self.masks: list[Tensor] = []
        #: What was looked at: who holds the parameters, a name, what was there, the same of its
        #: mask, and where the parameter's values are.
        self._layers: list[tuple[_Holder, str, Tensor | None, _Holder, str, Tensor | None, int]]
        self._layers = []
        self._beside: list[tuple[MaskedParameter, Tensor | None, Tensor | None, int]] = []
        self._known = False

    def update(
        self,
        wrappers: Sequence[Wrapper],
        names: Sequence[str],
        companions: Sequence[MaskedParameter],
    ) -> None:
        """Look again if anything was replaced or moved since.

        Args:
            wrappers: the pruner's layers, always the same.
            names: of the parameters that are masked in place: "weight", "bias".
            companions: parameters of other layers that are masked along.
        """
        if self._known and len(companions) == len(self._beside):
            for own, name, parameter, masks, key, mask, place in self._layers:
                if own.get(name) is not parameter or masks.get(key) is not mask:
                    break
                if place and parameter.data_ptr() != place:  # type: ignore[union-attr]
                    break
            else:
                for each, (known, parameter, mask, place) in zip(
                    companions, self._beside, strict=True
                ):
                    same = each is known and each.parameter is parameter and each.mask is mask
                    if not same or _place(parameter, mask) != place:
                        break
                else:
                    return
        self._look(wrappers, names, companions)

    def clear(self) -> None:
        """Forget all, and leave gradients as they come."""
        if self.gradients is not None:
            self.gradients.remove()
        self.__init__()  # type: ignore[misc]

    def _look(
        self,
        wrappers: Sequence[Wrapper],
        names: Sequence[str],
        companions: Sequence[MaskedParameter],
    ) -> None:
        pairs: list[tuple[Tensor | None, Tensor | None]] = []
        self._layers, self._beside = [], []
        for wrapper in wrappers:
            own, masks = wrapper.module._parameters, wrapper._buffers
            for name in names:
                parameter, mask = own.get(name), wrapper.mask(name)
                pairs.append((parameter, mask))
                place = _place(parameter, mask)
                self._layers.append((own, name, parameter, masks, f"{name}_mask", mask, place))
        for each in companions:
            pairs.append((each.parameter, each.mask))
            self._beside.append((each, *pairs[-1], _place(*pairs[-1])))
        masked = [(p, mask) for p, mask in pairs if p is not None and mask is not None]
        self.parameters = [parameter for parameter, _ in masked]
        self.values = [parameter.detach() for parameter in self.parameters]
        self.masks = [mask for _, mask in masked]
        if self.gradients is not None:
            self.gradients.follow(self.parameters, self.masks)
        self._known = True


_Holder = Mapping[str, Tensor | None]


def _place(parameter: Tensor | None, mask: Tensor | None) -> int:
    """Return where in memory the values of a masked parameter are, which a move changes."""
    return 0 if parameter is None or mask is None else parameter.data_ptr()
