"""Quantizers: fake quantization of weights, inputs, outputs and gradients during training."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from engine.attach.compressor import Compressor
from engine.attach.computed import make_parameter
from engine.attach.door import exports
from engine.attach.parametrized import is_parametrized, only_looking
from engine.attach.wrapper import Wrapper
from engine.calibration import Calibrated
from engine.errors import ConfigError, Problem, nearest
from engine.files import PathLike
from engine.plugins.blame import at_fault
from engine.plugins.stack import Stack, describe, placeholder
from engine.quantization.fake_quant_call import QuantGrad as QuantGrad
from engine.quantization.fake_quant_call import drop_copied
from engine.quantization.form import AffineForm, kept_form
from engine.quantization.layer_grids import begun
from engine.quantization.older_signatures import as_specified
from engine.quantization.one_shot import quantize_layers
from engine.quantization.placement import Placement
from engine.quantization.quant_types import QuantType as QuantType
from engine.quantization.quant_types import bits_of as bits_of
from engine.quantization.quant_types import of_type as of_type
from engine.quantization.quant_types import quant_types_of as quant_types_of
from engine.quantization.quantized_layers import QuantizedLayers
from engine.quantization.shared_weights import half_shared


class Quantizer(Compressor):
    """Base of quantization algorithms.

    A subclass implements ``quantize_weight``, ``quantize_input`` and ``quantize_output`` as far as
    it supports them. What they return is cast to the dtype of what they were given.

    Attributes:
        quant_grad: the :class:`QuantGrad` subclass that gives the gradient; None when the quantize
            methods are differentiable themselves (they are then called under autograd). Of
            ``quant_grad`` and a method ``quant_backward`` the one set later counts: on the
            instance, or further down the line of subclasses.
    """

    kind = "quantization"
    quant_grad: ClassVar[type[QuantGrad] | None] = QuantGrad

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("quantize_weight", "quantize_input"):
            if own := vars(cls).get(name):
                setattr(cls, name, as_specified(name, own))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._layers = QuantizedLayers()
        self._told_uncalibrated = False
        never_called = [
            wrapper.name
            for wrapper in self.wrappers
            if isinstance(wrapper.module, nn.modules.linear.NonDynamicallyQuantizableLinear)
            and set(quant_types_of(wrapper)) - {QuantType.WEIGHT}
        ]
        if never_called:
            raise ConfigError(
                [
                    Problem(
                        f'nn.MultiheadAttention reads the weight of "{name}" and never calls it: '
                        "its input and output cannot be quantized",
                        "/config_list",
                        allowed='give it an entry with "quant_types": ["weight"], or exclude it; '
                        'all of them are "op_types": ["NonDynamicallyQuantizableLinear"]',
                    )
                    for name in never_called
                ],
                describe(self),
            )

        half = half_shared(self.bound_model, self.wrappers)
        if half:
            raise ConfigError(
                [
                    Problem(
                        f'"{name}" is to be quantized and shares its weight with "{other}", which '
                        "is not: no file can hold both",
                        "/config_list",
                        allowed=f'quantize the weight of both, or exclude "{name}"',
                    )
                    for name, other in half
                ],
                describe(self),
            )

    # -- hooks ---------------------------------------------------------------------------------

    @placeholder
    def quantize_weight(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the fake-quantized weight; see ``HookSpecs.quantize_weight``."""
        raise NotImplementedError

    @placeholder
    def quantize_input(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the fake-quantized input; see ``HookSpecs.quantize_input``."""
        raise NotImplementedError

    @placeholder
    def quantize_output(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the fake-quantized output; see ``HookSpecs.quantize_output``."""
        raise NotImplementedError

    @placeholder
    def quant_backward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the gradient of a quantized value; see ``HookSpecs.quant_backward``."""
        raise NotImplementedError

    # -- surface -------------------------------------------------------------------------------

    @torch.no_grad()
    def unwrap(self, *, bake: bool = False) -> nn.Module:
        """Detach from the model; with ``bake=True`` the weights keep their quantized values."""
        if bake:
            # All are read before any is written: layers may share a weight.
            baked = [
                (wrapper, self._quantized_weight(wrapper))
                for wrapper in self.wrappers
                if wrapper.module in self._layers.computed
            ]
            for wrapper, value in baked:
                if is_parametrized(wrapper.module):
                    make_parameter(wrapper.module, value)
                else:
                    wrapper.weight.copy_(value)
        for wrapper in self.wrappers:
            for grid in wrapper.grids.values():
                grid.release()
        return super().unwrap(bake=bake)

    def export_model(
        self,
        model_path: PathLike,
        calibration_path: PathLike | None = None,
        onnx_path: PathLike | None = None,
        input_shape: list[int] | tuple[int, ...] | None = None,
        device: str | torch.device | None = None,
        *,
        batches: Iterable[Any] | None = None,
        folder_name: PathLike | None = None,
        dynamic_axes: Mapping[str, Mapping[int, str] | Sequence[int]] | None = None,
        opset_version: int | None = None,
        compare: str = "error",
    ) -> list[Placement]:
        """Write the quantized weights as packed integers, ranges as JSON, and a QDQ ONNX.

        Args:
            model_path: a file for ``engine.load_quantized``: weights of quantized layers as
                packed integers with their scales, everything else as it is. A name that ends in
                ``.safetensors`` gives that format; it needs ``engine[safetensors]``.
            calibration_path: ranges, scales and bits of each layer as JSON, for
                :meth:`load_calibration`.
            onnx_path: the model as ONNX with 8-bit integer weights and pairs of QuantizeLinear and
                DequantizeLinear, from which a runtime makes integer kernels; needs
                ``engine[onnx]``.
            input_shape: shape of the one input, batch included, for ``onnx_path``; without it
                ``dummy_input`` is the example.
            device: where the ONNX export runs; by default where the model is.
            batches: sample inputs: what integer kernels need and the quantizer leaves in float
                (outputs of convolutions, both sides of a sum) gets 8-bit ranges from them in the
                ONNX file. An approximation beyond the fake-quantized model.
            folder_name: a folder for relative paths, made if need be. Within ``engine run`` it is
                inside the job's own folder, where relative paths go in any case.
            dynamic_axes: sizes that are free in the ONNX file, by input, with their names, as for
                ``torch.onnx.export``: ``{"input": {0: "batch", 2: "height", 3: "width"}}``. By
                default as many as the model's code allows.
            opset_version: of the ONNX file, 13 to 23; by default PyTorch's choice.
            compare: the ONNX file is run and its outputs are compared with the model's. Where they
                are further apart than rounding explains: "error", and no file is left; "warn", or
                "no" comparison.

        Returns:
            Of each convolution, linear layer and sum whether it computes with integers in the ONNX
            file, and why not; nothing without ``onnx_path``.

        Raises:
            ExportError: weights of more values than their bits hold, a tensor without an affine
                form or a range or with more than 8 bits in an ONNX file, or a file that cannot be
                written.
        """
        export = exports()
        model, ranges, onnx = export.placed(folder_name, model_path, calibration_path, onnx_path)
        written: list[Placement] = export.export_quantized(
            self,
            model,
            ranges,
            onnx,
            input_shape,
            device,
            batches,
            export.OnnxOptions(opset_version, dynamic_axes, compare),
        )
        return written

    def load_calibration(self, path: PathLike) -> None:
        """Give activations the ranges of a file that ``export_model`` wrote, all or none.

        Raises:
            CheckpointError: the file is damaged or of another configuration; nothing is changed.
        """
        exports().load_calibration(self, path)

    def affine_form(self, wrapper: Wrapper, quant_type: QuantType) -> AffineForm:
        """Return scale, zero point and integers of one tensor of a layer: what is exported.

        A quantizer whose values are no affine grid, or one that is not kept in ``wrapper.grids``,
        overrides this.

        Raises:
            ExportError: there is no affine form, or an activation has had no range yet.
        """
        if quant_type == QuantType.WEIGHT:
            with torch.no_grad(), begun(wrapper):
                _ = wrapper.module.weight  # brings a grid over its extremes up to date
        return kept_form(wrapper, quant_type, describe(self))

    def warn_uncalibrated(self, wrapper: Wrapper, key: str) -> None:
        """Warn, once, where an activation is evaluated in float since it has no range yet."""
        if self._told_uncalibrated or torch.compiler.is_compiling():
            return
        self._told_uncalibrated = True
        remedy = (
            "call calibrate(batches) after compress()"
            if hasattr(self, "calibrate")
            else "run batches through it in training mode first"
        )
        warnings.warn(
            f'{describe(self)}: the {key} of layer "{wrapper.name}" has no range yet and is '
            f"evaluated in float\n  {remedy}",
            stacklevel=2,
        )

    # -- inside --------------------------------------------------------------------------------

    @torch.no_grad()
    def _when_attached(self) -> None:
        """Let a one-shot algorithm do its work with ``batches``."""
        if not self.calibrated:
            self._use_batches()
            self.calibrated = self.batches is not None

    def _use_batches(self) -> None:
        """Do all that needs batches, if there are any."""
        stack = self._stack
        assert stack is not None
        calibrate = stack.resolve("calibrate_layer")
        if calibrate is not None and self.batches is not None:
            data = Calibrated(self.batches, self.forward, self.states_folder)
            quantize_layers(calibrate, self, stack.provider("calibrate_layer"), data)

    def _needs_weight(self, entry: Mapping[str, Any]) -> bool:
        return "weight" in entry.get("quant_types", ())

    def _require(self, stack: Stack) -> None:
        for wrapper in self.wrappers:
            for quant_type in quant_types_of(wrapper):
                key = quant_type.key
                hook = "quant_backward" if quant_type == QuantType.GRADIENT else f"quantize_{key}"
                if not stack.has(hook):
                    own = [name for cls in type(self).__mro__[:-1] for name in vars(cls)]
                    near = nearest(hook, {*own} - set(dir(Quantizer)))
                    raise at_fault(
                        self,
                        f'has no {hook}, which quant_types ["{key}"] of layer '
                        f'"{wrapper.name}" needs'
                        + (f'\n  it has {near}: did its author mean "{hook}"?' if near else ""),
                        hook=hook,
                        layer=wrapper.name,
                    )

    def _attach(self, stack: Stack) -> None:
        drop_copied(self.bound_model)
        self._layers.attach(self, self.wrappers, stack)

    def _detach(self) -> None:
        self._layers.detach()

    def _quantized_weight(self, wrapper: Wrapper) -> Tensor:
        with only_looking(wrapper.module):
            weight = wrapper.module.weight
        assert isinstance(weight, Tensor)
        return weight

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_layers": QuantizedLayers()}
