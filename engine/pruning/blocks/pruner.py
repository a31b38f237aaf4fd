"""What an algorithm implements that removes whole blocks, and what a person calls."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from engine.attach.compressor import Compressor
from engine.attach.door import exports
from engine.attach.names import count
from engine.attach.selection import Selected, select_layers
from engine.errors import ConfigError, EngineError, Problem
from engine.files import PathLike
from engine.plugins.blame import at_fault
from engine.plugins.stack import Stack, describe, placeholder
from engine.pruning.blocks.found import Block, repeated_blocks
from engine.pruning.blocks.influence import influence_of
from engine.pruning.blocks.removal import without_blocks
from engine.pruning.masks import prune_count
from engine.user_code.batches import batches_in, call_or_explain, call_with_batch


class BlockPruner(Compressor):
    """Base of algorithms that remove whole blocks. A subclass implements ``score_block``.

    There is a wrapper for each block that an entry selects; ``default`` stands for all blocks that
    :func:`repeated_blocks` finds. ``compress()`` measures them on ``batches`` and passes the least
    ones by: the model computes as if they were gone, and their parameters need no gradient.
    :meth:`apply_speedup` and ``unwrap(bake=True)`` take them out, ``unwrap()`` puts them back. Each
    wrapper has ``influence``, what was measured, and ``removed``.
    """

    kind = "pruning"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._blocks: dict[nn.Module, Block] = {}
        self._entry_of: dict[nn.Module, int] = {}
        self._frozen: list[nn.Parameter] = []
        #: The names of what :meth:`apply_speedup` took out.
        self.speedup_report: list[str] | None = None
        #: Of masks, which there are none of.
        self.asked: dict[int, float] = {}
        super().__init__(*args, **kwargs)
        self.set_wrappers_attribute("influence", 0.0)
        self.set_wrappers_attribute("removed", False)

    @placeholder
    def score_block(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return how much a block does to each token; see ``HookSpecs.score_block``."""
        raise NotImplementedError

    # -- surface -------------------------------------------------------------------------------

    def unwrap(self, *, bake: bool = False) -> nn.Module:
        """Detach. The blocks are put back, with the weights that they had; with ``bake`` they go.

        Raises:
            EngineError: with ``bake``, a model whose config cannot say what is left.
        """
        names = self.removed_blocks() if bake and self._stack is not None else []
        super().unwrap(bake=bake)
        if names:
            with without_blocks(self.bound_model, names):
                self._forget_parameters()
        return self.bound_model

    def removed_blocks(self) -> list[str]:
        """Return the names of the blocks that are passed by, in the model's order."""
        return [wrapper.name for wrapper in self.wrappers if wrapper.removed]

    def apply_speedup(
        self, dummy_input: Any = None, kwargs: Mapping[str, Any] | None = None
    ) -> nn.Module:
        """Take the removed blocks out of the model, detach, and return it.

        Its outputs are compared with those of now. The lists that held blocks are numbered anew,
        as are the places that blocks know of themselves; a model of transformers has the config
        with which ``from_pretrained`` loads it. The optimizer forgets the parameters that went.

        Args:
            dummy_input: one tensor, a tuple of positional arguments, or a dict of keyword
                arguments; by default the compressor's ``dummy_input``, or the first batch.
            kwargs: keyword arguments.

        Raises:
            EngineError: the smaller model does not run, computes something else, or has no config
                that says it; nothing was changed.
        """
        if self._stack is None:
            raise EngineError("call compress() first: no block is removed")
        names = self.removed_blocks()
        expected = self._outputs(dummy_input, kwargs)
        with without_blocks(self.bound_model, names):
            try:
                found = self._outputs(dummy_input, kwargs)
            except Exception as error:
                raise EngineError(
                    f"the model does not run without {', '.join(names[:5])}: {error}\n"
                    "  its code counts blocks; exclude these, or change it"
                ) from error
            if not _alike(expected, found):
                raise EngineError(
                    f"without {', '.join(names[:5])} the model computes something else than with "
                    "these passed by: its code counts blocks\n  exclude these, or change it"
                )
            super().unwrap(bake=True)
            self._forget_parameters()
        self.speedup_report = names
        return self.bound_model

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
        dynamic_axes: Any = None,
        opset_version: int | None = None,
        compare: str = "error",
    ) -> None:
        """Write the ``state_dict`` of the model without the removed blocks, and its ONNX.

        Arguments are those of ``Pruner.export_model``; the model itself stays as it is, unless
        ``speedup`` is to take the blocks out of it, too.

        Raises:
            EngineError: ``mask_path`` is given: blocks have no masks.
            ExportError: a file cannot be written or the model cannot be exported.
            EngineError: a model whose config cannot say what is left.
        """
        if mask_path is not None:
            raise EngineError(
                f"{describe(self)} removes whole blocks, of which there are no masks\n"
                "  leave the masks' file out; removed_blocks() names them"
            )
        if speedup and self._stack is not None:
            self.apply_speedup(dummy_input)
        export = exports()
        model, onnx = export.placed(folder_name, model_path, onnx_path)
        options = export.OnnxOptions(opset_version, dynamic_axes, compare)
        export.export_blocks(self, model, onnx, input_shape, device, options)

    def smaller_copy(self) -> nn.Module:
        """Return a copy of the model without the removed blocks."""
        copied = copy.deepcopy(self.bound_model)
        names = [] if self._stack is None else self.removed_blocks()
        for name in names:
            copied.get_submodule(name).__dict__.pop("forward", None)
        with without_blocks(copied, names):
            return copied

    def model_to_export(self) -> nn.Module:
        """Return a copy without the removed blocks: formats know nothing of passing by."""
        return self.smaller_copy()

    # -- inside --------------------------------------------------------------------------------

    def _finishing(self) -> None:
        """Be told that the model is about to be exported."""

    def _when_attached(self) -> None:
        """Measure the blocks, and pass the least ones by."""
        if not self.calibrated:
            self._measure()
            self.calibrated = True
        self._pass_by()

    def _measure(self) -> None:
        stack = self._stack
        assert stack is not None
        assert self.batches is not None
        score = stack.resolve("score_block")
        assert score is not None
        provider = stack.provider("score_block")
        scores = influence_of(
            self.bound_model, self.wrappers, score, self.batches, self.forward, provider
        )
        by_entry: dict[int, list[int]] = defaultdict(list)
        for place, (wrapper, influence) in enumerate(zip(self.wrappers, scores, strict=True)):
            wrapper.set_attribute("influence", influence)
            by_entry[self._entry_of[wrapper.module]].append(place)
        for places in by_entry.values():
            sparsity = float(self.wrappers[places[0]].config["sparsity"])
            least = sorted(places, key=lambda place: scores[place])
            gone = set(least[: prune_count(len(places), sparsity)])
            for place in places:
                self.wrappers[place].set_attribute("removed", place in gone)
                self.wrappers[place].sparsity = sparsity

    def _pass_by(self) -> None:
        """Let removed blocks put out what they get, and their parameters be trained no more."""
        self._let_go()
        going = [wrapper.module for wrapper in self.wrappers if wrapper.removed]
        inside = {id(p) for block in going for p in block.parameters()}
        within = {module for block in going for module in block.modules()}
        kept = {
            id(p)
            for module in self.bound_model.modules()
            if module not in within
            for p in module._parameters.values()
        }
        for block in going:
            block.__dict__["forward"] = self._blocks[block].passes
        for parameter in self.bound_model.parameters():
            if id(parameter) in inside - kept and parameter.requires_grad:
                parameter.requires_grad_(False)
                parameter.grad = None
                self._frozen.append(parameter)

    def _let_go(self) -> None:
        for block, found in self._blocks.items():
            if block.__dict__.get("forward") is found.passes:
                del block.__dict__["forward"]
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._frozen.clear()

    def _outputs(self, dummy_input: Any, kwargs: Mapping[str, Any] | None) -> Any:
        model = self.bound_model
        example = self.dummy_input if dummy_input is None and kwargs is None else dummy_input
        training = model.training
        try:
            with torch.no_grad():
                model.eval()
                if example is None and kwargs is None:
                    assert self.batches is not None
                    return (self.forward or call_with_batch)(model, next(iter(self.batches)))
                if isinstance(example, Mapping):
                    return model(**example)
                args = example if isinstance(example, tuple) else (example,)
                return model(*(() if example is None else args), **(kwargs or {}))
        finally:
            model.train(training)

    def _forget_parameters(self) -> None:
        """Let the optimizer drop what is no parameter of the model any more."""
        if self.optimizer is None:
            return
        going = {id(p) for block in self._blocks for p in block.parameters()}
        going -= {id(p) for p in self.bound_model.parameters()}
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) in going:
                    self.optimizer.state.pop(parameter, None)
            group["params"] = [p for p in group["params"] if id(p) not in going]

    def _require(self, stack: Stack) -> None:
        if stack.has("calc_mask") or stack.has("sparsity"):
            raise at_fault(
                self,
                "removes whole blocks, and an extension of the stack changes masks\n"
                "  leave the extension out",
                hook="score_block",
            )
        if stack.provider("score_block") is None:
            raise at_fault(
                self, "has no score_block, which an algorithm of blocks needs", hook="score_block"
            )

    def _attach(self, stack: Stack) -> None:
        """Nothing before blocks are measured."""

    def _detach(self) -> None:
        self._let_go()

    def _state_replaced(self) -> None:
        if self._stack is not None:
            self._pass_by()

    def _select(self) -> list[Selected]:
        """Return the selected blocks; those named by hand must be some."""
        if not self._blocks:
            self._find()
        source = describe(self)
        selected = select_layers(
            self.bound_model,
            self.config_list,
            default_types=sorted({type(module).__name__ for module in self._blocks}),
            needs_weight=lambda entry: False,
            source=source,
        )
        wrong = [
            each
            for each in selected
            if each.module not in self._blocks and each.name in each.config.get("op_names", ())
        ]
        chosen = [each for each in selected if each.module in self._blocks]
        if wrong or not chosen:
            names = ", ".join(f'"{each.name}"' for each in wrong[:4])
            raise ConfigError(
                [
                    Problem(
                        f"{names} can not be left out" if wrong else "no entry selects a block",
                        "/config_list",
                        allowed=_offered(list(self._blocks.values())),
                    )
                ],
                source,
            )
        self._entry_of = {each.module: each.place for each in chosen}
        return chosen

    def _find(self) -> None:
        assert self.batches is not None
        first = next(batches_in(self.batches, "calibration"))
        forward = self.forward or call_or_explain
        found = repeated_blocks(self.bound_model, lambda: forward(self.bound_model, first))
        self._blocks = {block.module: block for block in found}
        if not found:
            raise ConfigError(
                [
                    Problem(
                        "the model has no blocks that can be left out",
                        "/config_list",
                        allowed="needs: a ModuleList or Sequential with two or more modules of one "
                        "class that put out one tensor of the shape of their input",
                    )
                ],
                describe(self),
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_blocks": {}, "_entry_of": {}, "_frozen": []}


def _offered(blocks: list[Block]) -> str:
    names = [block.name for block in blocks]
    shown = ", ".join(names if len(names) < 7 else [*names[:3], "...", names[-1]])
    return f"blocks are: {shown} ({count(type(b.module).__name__ for b in blocks)})"


def _alike(first: Any, second: Any) -> bool:
    """Return whether two outputs hold tensors of the same values, but for rounding."""
    pairs = list(zip(_tensors(first), _tensors(second), strict=False))
    return bool(pairs) and all(
        a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-5, atol=1e-6)
        for a, b in pairs[:1]
    )


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for each in value.values() for t in _tensors(each)]
    if isinstance(value, (tuple, list)):
        return [t for each in value for t in _tensors(each)]
    return []
