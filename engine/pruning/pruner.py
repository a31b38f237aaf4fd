"""What a pruning algorithm implements, and what a person calls beside the training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engine.attach.door import exports
from engine.attach.wrapper import Wrapper
from engine.files import PathLike
from engine.plugins.blame import at_fault
from engine.plugins.stack import placeholder
from engine.pruning.mask_holder import MaskHolder
from engine.pruning.smaller import smaller


class Pruner(MaskHolder):
    """Base of pruning algorithms. A subclass implements ``calc_mask``.

    Attributes:
        one_shot: a mask stands until the asked sparsity changes. Otherwise ``calc_mask`` is called
            after every optimizer step.
        straight_through: keep the dense weights beneath the mask, see the module's docstring.
    """

    # -- hooks with a default ------------------------------------------------------------------

    def sparsity(self, wrapper: Wrapper, epoch: int) -> float | None:
        """Return the ``sparsity`` of the layer's entry; see ``HookSpecs.sparsity``.

        1 where it is an outcome (``x-engine.sparsity``): nothing limits what is removed.
        """
        return float(wrapper.config.get("sparsity", 1.0 if self.finds_sparsity else 0.0))

    @placeholder
    def calc_mask(self, *args: Any, **kwargs: Any) -> dict[str, Tensor] | None:
        """Return the masks of one layer; see ``HookSpecs.calc_mask``."""
        raise NotImplementedError

    # -- surface -------------------------------------------------------------------------------

    def mask_gradient(self, wrapper: Wrapper) -> Tensor | None:
        """Return the loss's gradient with respect to a soft mask, each element of it on its own.

        The layer computes with ``W' = W * M`` and W's gradient is dL/dW' (straight through), so
        that ``dL/dM = dL/dW' * W``. Call it in ``before_step``, before W's gradient is changed; by
        then gradients are accumulated, unscaled, and averaged over processes.

        Args:
            wrapper: of a layer of this pruner, which must be ``straight_through``.

        Returns:
            A new tensor of the weight's shape, dtype and device; None where no loss depended on it.

        Raises:
            PluginError: the pruner is not ``straight_through``: what is removed has no value any
                more, and the gradient of its mask would be zero.
        """
        if not self.straight_through:
            raise at_fault(
                self,
                "asks for the gradient of a mask that is applied in place\n"
                "  set straight_through = True in the class: then the weights beneath it stay",
                layer=wrapper.name,
            )
        weight = wrapper.weight
        return None if weight.grad is None else weight.grad * weight.detach()

    def export_model(
        self,
        model_path: PathLike,
        mask_path: PathLike | None = None,
        onnx_path: PathLike | None = None,
        input_shape: list[int] | tuple[int, ...] | None = None,
        device: str | torch.device | None = None,
        *,
        speedup: bool = False,
        folder_name: PathLike | None = None,
        dummy_input: Any = None,
        dynamic_axes: Mapping[str, Mapping[int, str] | Sequence[int]] | None = None,
        opset_version: int | None = None,
        compare: str = "error",
    ) -> None:
        """Write the model's ``state_dict`` with masked weights zero, the masks, and ONNX.

        Args:
            model_path: the ``state_dict``, with the keys of the model as it was.
            mask_path: ``{layer: {"weight": mask, "bias": mask or None}}``, bool tensors.
            onnx_path: the model as ONNX; needs the extra ``engine[onnx]``.
            input_shape: shape of the one input, batch included, for ``onnx_path``.
            device: where the ONNX export runs; by default where the model is.
            speedup: make the model smaller first (:meth:`apply_speedup`); ``model_path`` is then a
                file for ``engine.load_compressed``.
            folder_name: a folder for relative paths, made if need be. Within ``engine run`` it is
                inside the job's own folder, where relative paths go in any case.
            dummy_input: what ``speedup`` runs the model on.
            dynamic_axes: sizes that are free in the ONNX file, by input, with their names, as for
                ``torch.onnx.export``: ``{"input": {0: "batch", 2: "height", 3: "width"}}``. By
                default as many as the model's code allows.
            opset_version: of the ONNX file, 13 to 23; by default PyTorch's choice.
            compare: the ONNX file is run and its outputs are compared with the model's. Where they
                are further apart than rounding explains: "error", and no file is left; "warn", or
                "no" comparison.

        Raises:
            ExportError: a file cannot be written or the model cannot be exported; no file is left
                half written.
            SpeedupError: ``speedup`` found no smaller model with equal outputs.
        """
        export = exports()
        model, masks, onnx = export.placed(folder_name, model_path, mask_path, onnx_path)
        options = export.OnnxOptions(opset_version, dynamic_axes, compare)
        if speedup or self.speedup_report is not None:
            export.export_smaller(
                self, model, masks, onnx, input_shape, device, dummy_input, options
            )
        else:
            self._finishing()
            export.export_pruned(self, model, masks, onnx, input_shape, device, options)

    def apply_speedup(
        self,
        dummy_input: Any = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        drop_constants: bool = False,
        graph_module: bool = False,
    ) -> nn.Module:
        """Make the model physically smaller: remove what the masks made dead; return the model.

        Outputs are those of the masked model in evaluation mode. The pruner is detached; the
        optimizer that it was given trains the new parameters. What was done, and why a masked
        channel was kept, is in ``self.speedup_report``.

        Args:
            dummy_input: one tensor, a tuple of positional arguments, or a dict of keyword
                arguments; by default what the pruner was given as ``dummy_input``.
            kwargs: keyword arguments.
            drop_constants: also mask the norms and biases of removed filters, whose constants keep
                channels from being removed before padded convolutions. Outputs change; train on.
            graph_module: return a ``torch.fx.GraphModule`` of the model's layers, in evaluation
                mode, in which sizes that are literals in the model's code follow the channels. The
                model itself has the smaller layers, too, and its code no longer fits them. Where
                layers are bound together let ``dependency_aware`` know (its own argument
                ``graph_module``).

        Raises:
            SpeedupError: no smaller model with equal outputs was found; nothing was changed.

        Warns:
            UserWarning: nothing was removed, and why.
        """
        self._finishing()
        return smaller(
            self, dummy_input, kwargs, drop_constants=drop_constants, graph_module=graph_module
        )

    # -- inside --------------------------------------------------------------------------------

    def _finishing(self) -> None:
        """Be told that the model is about to be exported or made smaller."""
