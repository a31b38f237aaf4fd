"""What an exporter is given: the compressed model, its layers and their grids, example inputs.

All that is known of a layer's integers comes from one place, ``quantizer.affine_form``. Tensors are
made when they are asked for, one at a time: what writes them one by one holds one of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from engine.attach.computed import Stage, is_computed, plain_weight
from engine.attach.wrapper import Wrapper
from engine.errors import ExportError
from engine.export.comparison import Sample, largest_difference, sample_of
from engine.export.free_sizes import as_call
from engine.export.plain_outputs import plain_outputs, tensors
from engine.export.source_layer import SourceLayer
from engine.quantization.layer_grids import begun

if TYPE_CHECKING:
    from engine.attach.compressor import Compressor


class Source:
    """A compressed model to be written.

    Attributes:
        compressor: the pruner or quantizer, attached.
        model: its model, not to be changed.
        kind: "pruning" or "quantization".
        layers: the layers that it works on, by name.
        args: positional example inputs; empty without ``dummy_input``.
        kwargs: keywords of them.
        has_example: whether there are any.
        compare: what is done where a file computes something else: "error", "warn" or "no".
    """

    def __init__(self, compressor: Compressor, example: Any = None, compare: str = "error") -> None:
        self.compressor = compressor
        self.model: nn.Module = compressor.model_to_export()
        self.kind = compressor.kind
        self.compare = compare
        self.has_example = example is not None
        self.example = example
        self.args, self.kwargs = as_call(example) if self.has_example else ((), {})
        self.layers: Mapping[str, SourceLayer] = {
            wrapper.name: SourceLayer(compressor, wrapper)
            for wrapper in (compressor.wrappers if self.model is compressor.bound_model else ())
        }

    @property
    def quantized(self) -> dict[str, SourceLayer]:
        """The layers whose weight is quantized, by name."""
        return {name: layer for name, layer in self.layers.items() if "weight" in layer.kinds}

    @cached_property
    def aliases(self) -> dict[str, str]:
        """For each key of the ``state_dict`` that is another's tensor, the first such key."""
        first: dict[int, str] = {}
        found = {}
        for key, value in self._state().items():
            owner = first.setdefault(id(value), key)
            if owner != key:
                found[key] = owner
        return found

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield key and value of the ``state_dict``, as the model computes with them.

        Weights are quantized and masked, on the CPU; a tensor that several keys share is given
        once, under the first. Nothing is kept of what was given.
        """
        for key in self.shapes():
            yield key, self.tensor(key)

    def shapes(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Return shape and dtype of what :meth:`tensors` gives, by key, without making it."""
        state = self._state()
        return {
            key: (value.shape, value.dtype)
            for key, value in state.items()
            if key not in self.aliases
        }

    def tensor(self, key: str) -> Tensor:
        """Return one of :meth:`tensors`.

        Raises:
            ExportError: ``key`` is no tensor of the model.
        """
        state = self._state()
        if key not in state:
            raise ExportError(f'the model has no tensor "{key}"')
        value = state[key]
        module = self._computed.get(id(value))
        if module is not None:
            wrapper = self._wrappers.get(id(value))
            if wrapper is not None:
                with torch.no_grad(), begun(wrapper):
                    return _held(module.weight)
            with torch.no_grad():
                return _held(module.weight)
        mask = self._masks.get(id(value))
        return _held(value if mask is None else value.detach() * mask)

    @cached_property
    def sample(self) -> Sample:
        """What the model returns for the example, in evaluation mode, as it was before.

        Raises:
            ExportError: there is no example, or the model does not run on it.
        """
        if not self.has_example:
            raise ExportError("there are no example inputs: give dummy_input")
        with self.evaluated() as model, plain_outputs(model):
            try:
                return sample_of(model, self.args, self.kwargs)
            except ExportError:
                raise
            except Exception as error:  # the model's own forward raises whatever it likes
                line = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise ExportError(f"the model does not run on dummy_input: {line}") from error

    @contextmanager
    def evaluated(self) -> Iterator[nn.Module]:
        """Within, the model is in evaluation mode, all of it quantized, and records no gradient."""
        training = [module for module in self.model.modules() if module.training]
        try:
            with torch.no_grad(), ExitStack() as stack:
                for wrapper in self.compressor.wrappers:
                    stack.enter_context(begun(wrapper))
                self.model.eval()
                yield self.model
        finally:
            for module in training:
                module.training = True

    def moved_by(self, as_read: Callable[[Source, str], Tensor | None]) -> list[float]:
        """Return how far each output of the example moves when tensors are what a file holds.

        Args:
            as_read: returns a tensor of the ``state_dict`` as a reader has it, None for the same.
        """
        most = [0.0] * len(self.sample.expected)
        changed = {key: new for key in self.shapes() if (new := as_read(self, key)) is not None}
        if not changed:
            return most
        model = self.plain_copy()
        state = model.state_dict(keep_vars=True)
        with torch.no_grad():
            for key in self.shapes():
                state[key].copy_(changed.get(key, self.tensor(key)))
            outputs = tensors(model(*self.args, **self.kwargs))
        for place, (own, moved) in enumerate(zip(self.sample.expected, outputs, strict=True)):
            if own.is_floating_point():
                most[place] = largest_difference(own, moved.cpu())
        return most

    def plain_copy(self) -> nn.Module:
        """Return a copy of the model, in evaluation mode, whose weights are plain parameters.

        For a file that holds no structure: its weights are loaded into this. Activations that are
        quantized still are.
        """
        copied = copy.deepcopy(self.model)
        for module in copied.modules():
            for stage in Stage:
                if is_computed(module, stage):
                    plain_weight(module, stage)
        return copied.eval()

    def _state(self) -> dict[str, Any]:
        return {
            key: value
            for key, value in self.model.state_dict(keep_vars=True).items()
            if isinstance(value, Tensor)
        }

    @cached_property
    def _computed(self) -> dict[int, Any]:
        return {
            id(module._parameters["weight"]): module
            for module in self.model.modules()
            if any(is_computed(module, stage) for stage in Stage)
        }

    @cached_property
    def _wrappers(self) -> dict[int, Wrapper]:
        own = self.compressor.wrappers
        return {id(w.weight): w for w in own if "weight" in w.module._parameters}

    @cached_property
    def _masks(self) -> dict[int, Tensor]:
        found: dict[int, Tensor] = {}
        for wrapper in self.compressor.wrappers:
            for name in ("weight", "bias"):
                parameter, mask = wrapper.module._parameters.get(name), wrapper.mask(name)
                if parameter is not None and mask is not None:
                    found[id(parameter)] = mask
        return found


def _held(value: Any) -> Tensor:
    assert isinstance(value, Tensor)
    return value.detach().cpu()
