"""The contract between the engine and its plugins, in the order in which a training run meets it.

Every hook is a pluggy specification of the project ``engine``. A plugin takes the subset of the
arguments that it needs, by name; arguments are only ever added. "Provider" hooks are answered by
exactly one plugin of a compressor's stack (the first result that is not None); "observer" hooks are
told to every plugin. A wrapper (``@hookimpl(wrapper=True)``) may change a provider's result.

A subclass of ``engine.Pruner`` or ``engine.Quantizer`` implements a hook by defining a method of
its name; other plugins mark theirs with ``engine.hookimpl``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

from engine.api_version import API_VERSION as API_VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from torch import Tensor, nn

    from engine.attach.compressor import Compressor
    from engine.attach.wrapper import Wrapper
    from engine.calibration import LayerInputs, LayerResult
    from engine.quantization.quantizer import QuantType
    from engine.speedup import RuleLike

PROJECT = "engine"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class HookSpecs:
    """Hook specifications; ``self`` is never passed."""

    # -- once, when the model is attached ------------------------------------------------------

    @hookspec
    def preprocess_model(self, compressor: Compressor, model: nn.Module) -> None:
        """Look at or change the model before any layer is wrapped. Observer.

        Called by ``compress()``, once, on the dense model. What is changed here is the plugin's to
        undo in ``restore_model``.
        """

    @hookspec
    def restore_model(self, compressor: Compressor, model: nn.Module) -> None:
        """Undo what ``preprocess_model`` did. Observer.

        Called by ``compressor.unwrap()``, after masks and computed weights are gone.
        """

    # -- each time masks are due ---------------------------------------------------------------

    @hookspec(firstresult=True)
    def sparsity(self, wrapper: Wrapper, epoch: int) -> float | None:
        """Return the fraction of ``wrapper``'s weights to remove now, in [0, 1]. Provider.

        Called for each wrapper when masks are due. Schedules wrap this hook, so that any pruner is
        asked for a mask at the fraction that comes out. None: leave this layer's mask alone.
        """

    @hookspec(firstresult=True)
    def calc_mask(
        self, wrapper: Wrapper, sparsity: float, wrapper_idx: int
    ) -> dict[str, Tensor] | None:
        """Return ``{"weight_mask": ..., "bias_mask": ...}`` for one layer. Provider.

        Called after ``sparsity`` for each wrapper whose mask is due: at ``compress()`` and right
        after ``optimizer.step()``, under ``torch.no_grad()``. A mask has the shape of its parameter
        (or broadcasts to it), any dtype, and holds zeros and ones; ``bias_mask`` is optional.
        ``wrapper.config["sparsity"]`` is ``sparsity`` meanwhile, for algorithms that read it there.
        ``wrapper_idx`` is the wrapper's place in ``get_modules_wrapper()``. None: not known yet
        (statistics are still being collected); the hook is called again after the next step.
        Constraints (dependency groups, multiples of 8) wrap this hook and change the mask.
        """

    @hookspec(firstresult=True)
    def calibrate_layer(
        self, wrapper: Wrapper, inputs: LayerInputs, sparsity: float | None
    ) -> LayerResult | None:
        """Return what becomes of one layer, given what it gets in some batches. Provider.

        For algorithms that look at data and do not train; in place of ``calc_mask``, or beside it
        for layers that this returns None for. Called by ``compress()`` with the compressor's
        ``batches``, and whenever a schedule asks for another sparsity above 0, under
        ``torch.no_grad()``, for each layer in the order in which they run, behind what became of
        those before it. ``sparsity`` is None for a quantizer. What is returned is put in place at
        once: the weight through ``compressor.change``, the mask of a pruner, the grid of a
        quantizer, which stands from then on. *Since 1.1.*
        """

    @hookspec(firstresult=True)
    def score_block(self, wrapper: Wrapper, before: Tensor, after: Tensor) -> Tensor:
        """Return how much a block does to each token, shape (tokens,). Provider.

        For algorithms that remove whole blocks (``engine.pruning.BlockPruner``), in place of masks.
        Called by ``compress()`` for each block and batch, under ``torch.no_grad()``, on the dense
        model. ``before`` is what the block gets and ``after`` what it puts out: (tokens, features),
        float32 or wider, without padding; of images each place is a token. The blocks of least
        mean are removed. *Since 1.1.*
        """

    @hookspec
    def masks_updated(self, compressor: Compressor) -> None:
        """New masks are in place and applied to the weights. Observer.

        Called at ``compress()``, and after an optimizer step in which masks were due; after each
        one, for a pruner whose masks are recomputed in each. ``wrapper.sparsity`` is what was asked
        of a layer.
        """

    # -- each forward pass of a quantized layer ------------------------------------------------

    @hookspec(firstresult=True)
    def quantize_weight(self, weight: Tensor, wrapper: Wrapper) -> Tensor:
        """Return the fake-quantized weight: same shape, dtype and device. Provider.

        Called in every forward that uses the weight, under autograd and possibly compilation;
        ``weight`` must not be changed in place.
        """

    @hookspec(firstresult=True)
    def quantize_input(self, input: Tensor, wrapper: Wrapper) -> Tensor:
        """Return the fake-quantized input of a layer. Provider.

        Called in every forward, once for each floating-point tensor among the layer's positional
        arguments, under autograd and possibly compilation.
        """

    @hookspec(firstresult=True)
    def quantize_output(self, output: Tensor, wrapper: Wrapper) -> Tensor:
        """Return the fake-quantized output of a layer. Provider.

        Called in every forward, once for each floating-point tensor that the layer returns.
        """

    # -- each forward pass of the model in training --------------------------------------------

    @hookspec
    def extra_loss(
        self, compressor: Compressor, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Tensor | None:
        """Return what is added to the loss of this forward pass: one number. Observer.

        Called after each forward of the model in training mode with gradients enabled, with what
        the model was called with and what it put out. ``compressor.loss(loss)`` adds what all
        plugins return; a model that puts out its own ``loss`` has it added there. None: nothing.
        *Since 1.1.*
        """

    # -- each backward pass of a quantized layer -----------------------------------------------

    @hookspec(firstresult=True)
    def quant_backward(
        self,
        tensor: Tensor,
        grad_output: Tensor,
        quant_type: QuantType,
        wrapper: Wrapper,
        scale: Tensor | None,
        zero_point: Tensor | None,
        qmin: int,
        qmax: int,
    ) -> Tensor:
        """Return the gradient with respect to ``tensor``, the unquantized value. Provider.

        Without this hook the straight-through estimator is used: ``grad_output`` unchanged. Called
        once for each quantized tensor in backward. ``scale`` and ``zero_point`` are what the
        quantizer stored on the wrapper for this ``quant_type`` (None if it stored none);
        ``grad_output`` must not be changed in place. For ``QuantType.GRADIENT`` the value is the
        layer's output and the result replaces the gradient that flows into the layer.
        """

    # -- the training loop ---------------------------------------------------------------------

    @hookspec
    def before_step(self) -> None:
        """Weights and gradients of one minibatch are both at hand. Observer.

        Called right before ``optimizer.step()``: the place for penalties that are added to the
        gradient and for importance scores of weight times gradient.
        """

    @hookspec
    def step(self) -> None:
        """A minibatch is done and the weights are updated. Observer.

        Called right after ``optimizer.step()``, before masks are recomputed and applied.
        """

    @hookspec
    def update_epoch(self, epoch: int) -> None:
        """An epoch begins; ``epoch`` counts from 0. Observer.

        Called by ``compressor.update_epoch(epoch)``, before masks are marked as due.
        """

    # -- after training ------------------------------------------------------------------------

    @hookspec
    def speedup_rules(self) -> Mapping[str | type[nn.Module], RuleLike]:
        """Return how channels flow through operators and modules of your own. Observer.

        Called by ``apply_speedup``. A key is an operator's name (``"mylib::swish"``) or a module's
        class. For an operator the value is ``"pointwise"`` (each element from the elements at its
        place), ``"spatial"`` (batch and channels stay apart), or a rule, see
        ``engine.speedup.Rule``; for a class ``"zeros"``: the module goes on seeing the removed
        channels, as zeros, the way norms do.
        """
