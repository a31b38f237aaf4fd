"""What pruners and quantizers share: attaching an algorithm to a model and its training loop."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.attach import checkpoint
from engine.attach.added_loss import AddedLoss
from engine.attach.changes import Changes
from engine.attach.collectors import ActivationCollectors
from engine.attach.configured import Configured
from engine.attach.door import exports
from engine.attach.forgotten import NotYetAttached
from engine.attach.learned_parameters import LearnedParameters
from engine.attach.model_hooks import KEEPER, Keeper
from engine.attach.optimizer_hooks import OptimizerHooks
from engine.attach.unusable import refuse_unusable
from engine.attach.wrapper import Wrapper
from engine.errors import EngineError
from engine.files import PathLike
from engine.plugins.blame import Verify
from engine.plugins.stack import Stack, describe, placeholder
from engine.user_code.batches import Forward

#: Methods of the surface that are hooks too; see ``_surface``.
_SURFACE_HOOKS = ("update_epoch", "step")


class Compressor(Configured):
    """One algorithm on one model. Nothing in the model changes before :meth:`compress`.

    Args:
        model: the user's model; it is changed in place and stays the same object.
        config_list: which layers get what, entries applied in order; see ``docs/configuration``.
        optimizer: the optimizer that trains the model. Without one, the optimizer that steps the
            model's parameters is found when it first steps.
        extensions: extension instances (watchers, constraints) for the stack, innermost first.
        dummy_input: example inputs, for what has to run the model: one tensor, a tuple of
            positional arguments, or a dict of keyword arguments.
        batches: inputs that an algorithm is calibrated with, without labels: a list of batches or a
            loader, or ``"module:function"`` that returns one. Of a tuple or list the first item is
            the input, a mapping is keyword arguments.
        forward: ``forward(model, batch)`` runs the model, where that is not right; or
            ``"module:function"``.
        states_folder: a folder where what blocks put out for the batches is kept while a one-shot
            algorithm goes from block to block; in memory without it. It is empty afterwards.
        **arguments: the algorithm's own arguments, checked and completed by its schema; each
            becomes an attribute.

    Raises:
        ConfigError: the configuration is wrong by itself or for this model.
        PluginError: the algorithm and its extensions do not fit together.
    """

    hooks_by_name: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in _SURFACE_HOOKS:
            own = getattr(cls, name)
            if not hasattr(own, "_is_placeholder"):
                setattr(cls, f"_on_{name}", own)
                setattr(cls, name, _surface(name, own))

    def __init__(
        self,
        model: nn.Module,
        config_list: Sequence[Mapping[str, Any]] | None = None,
        optimizer: Optimizer | None = None,
        *,
        extensions: Sequence[object] = (),
        dummy_input: Any = None,
        batches: Iterable[Any] | str | None = None,
        forward: Forward | str | None = None,
        states_folder: PathLike | None = None,
        **arguments: Any,
    ) -> None:
        self.host: Compressor = self
        self._hooks: OptimizerHooks | None = None
        self._stack: Stack | None = None
        self._learned: LearnedParameters | None = None
        self._added_loss: AddedLoss | None = None
        self._collectors = ActivationCollectors()
        self._telling: set[str] = set()
        #: By layer, what a person must know of how it was calibrated; "" for nothing.
        self.calibration_notes: dict[str, str] = {}
        self._looked_at_parameters = False
        self._forgotten: NotYetAttached | None = None
        super().__init__(
            model,
            config_list,
            optimizer,
            extensions=extensions,
            dummy_input=dummy_input,
            batches=batches,
            forward=forward,
            states_folder=states_folder,
            **arguments,
        )
        self._forgotten = NotYetAttached(self, self.optimizer)

    # -- life cycle ----------------------------------------------------------------------------

    def compress(self) -> nn.Module:
        """Attach the algorithm and return the model: the same object, ready to be trained on.

        A second call changes nothing.
        """
        if self._stack is not None:
            return self.bound_model
        parts = list(self._participants())
        for part in parts:
            if part._forgotten is not None:
                part._forgotten.is_attached()
        needed = [extension for part in parts for extension in part._own_extensions()]
        given = {type(extension) for extension in self.extensions}
        needed = [extension for extension in needed if type(extension) not in given]
        stack = Stack([*parts, *needed, *self.extensions], self._verifiers())
        self._require(stack)
        prepare = stack.resolve("preprocess_model")
        refuse_unusable(self.wrappers, describe(self))
        self._looked_at_parameters = False
        try:
            if prepare is not None:
                prepare(self, self.bound_model)
                known = {id(wrapper.module): wrapper for wrapper in self.wrappers}
                self.wrappers[:] = [known.get(id(w.module), w) for w in self._wrapped()]
            self._stack = stack
            self._attach(stack)
        except BaseException:
            self.unwrap()
            raise
        self._tell_step = stack.resolve("step")
        if ask := stack.resolve("extra_loss"):
            self._added_loss = AddedLoss(self.bound_model, ask, self, describe(self))
        learned = LearnedParameters(self.bound_model, self.wrappers)
        self._learned = learned if learned else None
        self._hooks = OptimizerHooks(
            self.bound_model,
            self.optimizer,
            self._before_step if learned else stack.resolve("before_step"),
            self._after_step,
            self._weights_replaced,
            counts=self._tell_step is not None,
        )
        if learned and self.optimizer is not None:
            learned.join(self.optimizer)
        self.bound_model.__dict__.setdefault(KEEPER, Keeper()).append(self)
        try:
            self._when_attached()
        except BaseException:
            self.unwrap()
            raise
        return self.bound_model

    def unwrap(self, *, bake: bool = False) -> nn.Module:
        """Detach: hooks, masks and computed weights go, classes and names are as they were.

        What the algorithm changed in the model (:meth:`change`) is put back, bit for bit, unless
        the model was trained since; with ``bake=True`` it stays.
        """
        for part in self._participants():
            if part is not self:
                part.unwrap(bake=bake)
        self._collectors.clear()
        if self._added_loss is not None:
            self._added_loss.remove()
            self._added_loss = None
        if self._hooks is not None:
            if self._learned is not None and self._hooks.optimizer is not None:
                self._learned.leave(self._hooks.optimizer)
            self._hooks.remove()
            self._hooks = None
        if self._stack is not None:
            self._detach()
            restore = self._stack.resolve("restore_model")
            self._stack = None
            if restore is not None:
                restore(self, self.bound_model)
        if not bake:
            self._changes.put_back()
        self._changes.clear()
        self.calibrated = False
        keeper = self.bound_model.__dict__.get(KEEPER, ())
        if self in keeper:
            keeper.remove(self)
            if not keeper:
                del self.bound_model.__dict__[KEEPER]
        return self.bound_model

    @placeholder
    def update_epoch(self, epoch: int) -> None:
        """Say that epoch ``epoch`` (from 0) begins. Always allowed, also where it has no effect."""
        number = operator.index(epoch) if hasattr(epoch, "__index__") else -1
        if number < 0 or isinstance(epoch, bool):
            raise EngineError(f"update_epoch takes an epoch number from 0 on, got {epoch!r}")
        if self.host._forgotten is not None:
            self.host._forgotten.warn("update_epoch()")
        for part in self.host._participants():
            part.epoch = number
        self._tell("update_epoch", number)

    @placeholder
    def step(self) -> None:
        """Say that a minibatch is done. Always allowed.

        With an optimizer everything has been done in ``optimizer.step()`` already, and masks are
        only applied once more; without one, this is where they are recomputed, too.
        """
        if self._hooks is None or "step" in self._telling:
            if self.host._forgotten is not None and not self.host._telling:
                self.host._forgotten.warn("step()")
            return
        if self._hooks.seen:
            # The optimizer has done the rest; weights may have been changed by hand since.
            self._weights_replaced()
        else:
            self._after_step()

    def loss(self, loss: Tensor) -> Tensor:
        """Return ``loss`` with what extensions such as ``distillation`` add to it.

        Always allowed: without such an extension it is ``loss`` itself. Call it once for each loss,
        before it is scaled or divided, and then ``backward()`` what it returns. Where the model
        puts out a loss of its own they are in that already, and nothing is added twice.

        Args:
            loss: of the forward passes since the last call.
        """
        added = self.host._added_loss
        return loss if added is None else added.total(loss)

    @torch.no_grad()
    def change(self, tensor: Tensor, value: Tensor) -> None:
        """Write ``value`` into a parameter or buffer of the model, in place, so that it is undone.

        :meth:`unwrap` puts back what was there before the first change, ``unwrap(bake=True)`` keeps
        the last; both also after :meth:`state_dict` was loaded elsewhere. What is trained or loaded
        since is left alone.

        Args:
            tensor: of the model.
            value: broadcasts to its shape; cast to its dtype and device.
        """
        changes = self.host._changes
        with changes.noting([tensor]):
            tensor.copy_(value)

    def export(
        self,
        to: str,
        path: PathLike,
        *,
        dummy_input: Any = None,
        compare: str = "error",
        folder_name: PathLike | None = None,
        **options: Any,
    ) -> Any:
        """Write the compressed model in a format that an exporter is installed for.

        Args:
            to: the exporter's name; ``engine list-algorithms --exporters`` lists them.
            path: the file, or the folder where the format is one.
            dummy_input: example inputs: a tensor, a tuple of positional ones, or a dict of
                keywords; by default the compressor's own. Formats that hold a graph need them, and
                what was written is compared with the model on them.
            compare: where that computes something else than the model: "error", and nothing is
                left; "warn", or "no" comparison.
            folder_name: a folder for a relative path, made if need be. Within ``engine run`` it is
                inside the job's own folder, where relative paths go in any case.
            **options: the exporter's own; ``engine show NAME`` prints them.

        Returns:
            What was written: ``path``, ``files`` with their sizes, and ``placements``, which
            operators compute with integers where the format says so.

        Raises:
            ExportError: a layer that the format cannot hold, with the reason, before anything is
                written; or nothing can be written there.
            ConfigError: an option that the exporter has not, or a value that it may not have.
            PluginError: there is no such exporter, or it is broken.
        """
        return exports().export_to(
            self,
            to,
            path,
            dummy_input=dummy_input,
            compare=compare,
            folder_name=folder_name,
            options=options,
        )

    # -- layers --------------------------------------------------------------------------------

    def learned_parameters(self) -> list[nn.Parameter]:
        """Return what the algorithm learns beside the model's parameters, in the model's order.

        The optimizer trains them in the group of their layer's weight. Made after
        :meth:`compress`, with a group of theirs, it gives them a learning rate of their own.
        """
        return list(LearnedParameters(self.bound_model, self.wrappers).all())

    def add_activation_collector(
        self, collector: Callable[[Wrapper, tuple[Any, ...], Any], None]
    ) -> int:
        """Call ``collector(wrapper, input, output)`` in each forward of each wrapped layer.

        ``input`` is the tuple of positional inputs. Returns an id for
        :meth:`remove_activation_collector`.
        """
        return self._collectors.add(self.wrappers, collector)

    def remove_activation_collector(self, identifier: int) -> None:
        """Take a collector away.

        Raises:
            ValueError: there is no collector with this id.
        """
        self._collectors.remove(identifier)

    # -- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return everything that, beside the model's and optimizer's own, resumes bit-exactly."""
        return checkpoint.state_of(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`.

        Raises:
            CheckpointError: it belongs to another algorithm or model; nothing was changed.
        """
        checkpoint.restore(self, state)

    def load_model_state_dict(self, model_state: Mapping[str, Any]) -> None:
        """Load a plain ``state_dict`` of the model, then apply masks again.

        Raises:
            CheckpointError: keys or shapes differ; the model is unchanged.
        """
        checkpoint.load_model(self.bound_model, model_state)
        self._weights_replaced()

    def __getstate__(self) -> dict[str, Any]:
        """Pickle what a pickled model needs of its algorithm; not the training loop around it."""
        gone: dict[str, Any] = {
            "optimizer": None,
            "plugin": None,  # it knows the registry, and with it every other plugin
            "_hooks": None,
            "_stack": None,
            "_added_loss": None,
            "_learned": None,
            "_forgotten": None,
            "_collectors": ActivationCollectors(),
            "_changes": Changes(),
            "batches": None,
            "forward": None,
        }
        return {**self.__dict__, **gone, "extensions": (), "_tell_step": None}

    # -- for subclasses inside the engine ------------------------------------------------------

    def model_to_export(self) -> nn.Module:
        """Return what an export writes: the model, or a copy of which something was removed."""
        return self.bound_model

    def _own_extensions(self) -> Iterable[object]:
        """Return the extensions that the algorithm's own arguments ask for."""
        return ()

    def _participants(self) -> Iterable[Compressor]:
        """Yield the algorithms of the stack, innermost first."""
        yield self

    def _require(self, stack: Stack) -> None:
        """Raise PluginError when the stack lacks a hook that this kind needs."""

    def _verifiers(self) -> Mapping[str, Verify]:
        """Return, by hook, what looks at each plugin's result where several have a say in it."""
        return {}

    def _attach(self, stack: Stack) -> None:
        raise NotImplementedError

    def _when_attached(self) -> None:
        """Do what is to be done once, as soon as it is attached; if this fails, it is detached."""

    def _detach(self) -> None:
        raise NotImplementedError

    def _optimizer_stepped(self) -> None:
        """React to an optimizer step, after the ``step`` hooks."""

    def _weights_replaced(self) -> None:
        """React to weights that were changed from outside: loaded, or by another optimizer."""

    def _before_step(self) -> None:
        self._tell("before_step")
        assert self._learned is not None
        if self._hooks is not None and self._hooks.optimizer is not None:
            self._learned.join(self._hooks.optimizer)
        self._learned.agree_between_processes()

    def _after_step(self) -> None:
        if not self._looked_at_parameters:
            # Who shards or replaces parameters does so before training begins.
            refuse_unusable(self.wrappers, describe(self))
            self._looked_at_parameters = True
        self._changes.clear()
        if self._added_loss is not None:
            self._added_loss.stepped()
        if self._learned is not None:
            self._learned.clear_gradients()
        try:
            if self._tell_step is not None:
                self._tell("step")
        except BaseException:
            self._weights_replaced()  # whatever a plugin does, what is masked is zero
            raise
        self._optimizer_stepped()

    def _tell(self, hook: str, *arguments: Any) -> None:
        """Call an observer hook once, however its implementations call back."""
        call = self._stack.resolve(hook) if self._stack is not None else None
        if call is None or hook in self._telling:
            return
        self._telling.add(hook)
        try:
            call(*arguments)
        finally:
            self._telling.discard(hook)


def _surface(name: str, own: Callable[..., None]) -> Callable[..., None]:
    """Return what a user calls where a subclass has its own version of a hook of the surface.

    It goes through the engine, which tells ``own`` as the hook, whether or not ``own`` calls
    ``super()``. While the hook is being told it is ``own``, so that ``super()`` reaches it.
    """

    @functools.wraps(own)
    def method(self: Compressor, *args: Any, **kwargs: Any) -> None:
        through = own if name in self.host._telling else getattr(Compressor, name)
        through(self, *args, **kwargs)

    return placeholder(method)
