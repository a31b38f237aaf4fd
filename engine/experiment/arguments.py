"""``@experiment_args``: a function of a configuration becomes the script of an experiment."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.errors import EngineError, nearest
from engine.experiment.basic_config import BasicConfig
from engine.experiment.protocol import print_result
from engine.files.job import model_folder, saves_model
from engine.plugins import registry

_remembered: list[Callable[[], object]] = []


def save_model(function: Callable[..., object], *args: Any, **kwargs: Any) -> None:
    """Remember how the model is saved: ``save_model(torch.save, model.state_dict(), "model.pth")``.

    When the function under :func:`experiment_args` has returned and the runner keeps models,
    ``function(*args, **kwargs)`` is called with the job's own folder as the current one. Of an
    automatic experiment the best trial's folder stays. Without a runner nothing is saved. The last
    call counts.

    Raises:
        EngineError: ``function`` cannot be called.
    """
    if not callable(function):
        raise EngineError(f"save_model takes a function and its arguments, got {function!r}")
    _remembered[:] = [functools.partial(function, *args, **kwargs)]


def experiment_args(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function be the script of an experiment.

    Called as ``main(sys.argv[1])`` or ``main(config)``, or without an argument to take
    ``sys.argv[1]``, it loads the configuration and calls the function with those of its keys that
    are parameters; keyword arguments win over the file's. A parameter called ``config`` gets all of
    it, for ``engine.create_compressor``. What the function returns is reported with
    ``print_result`` and returned; then the model is saved if :func:`save_model` was called.

    Raises:
        EngineError: a parameter without a default is not in the configuration.
        ConfigError: the file cannot be read.

    Warns:
        UserWarning: keys that no parameter takes, when the function takes no ``config``.

    Example:
        >>> @engine.experiment_args
        ... def main(config, lr=1e-3):
        ...     return accuracy
        >>> if __name__ == "__main__":
        ...     main()
    """
    parameters = inspect.signature(function).parameters

    @functools.wraps(function)
    def script(source: str | os.PathLike[str] | Mapping[str, Any] | None = None, **own: Any) -> Any:
        config = BasicConfig(_loaded(source))
        config.update(own)
        _remembered.clear()
        value = function(**_chosen(config, parameters, function.__name__))
        if value is None:
            raise EngineError(
                f"{function.__name__} returned nothing: an experiment's function returns its score"
            )
        print_result(value)
        if _remembered and saves_model() and (folder := model_folder()) is not None:
            with _inside(folder):
                _remembered[0]()
        return value

    return script


def _loaded(source: str | os.PathLike[str] | Mapping[str, Any] | None) -> Mapping[str, Any]:
    if isinstance(source, Mapping):
        return source
    if source is None:
        if len(sys.argv) < 2:
            raise EngineError(
                f"the file of a configuration is missing\n  run: {sys.argv[0]} CONFIG.json, "
                "or engine run EXPERIMENT"
            )
        source = sys.argv[-1]
    return BasicConfig().load(source)


def _chosen(
    config: BasicConfig, parameters: Mapping[str, inspect.Parameter], name: str
) -> dict[str, Any]:
    """Return the arguments for a function with these parameters."""
    kinds = {parameter.kind for parameter in parameters.values()}
    if inspect.Parameter.VAR_KEYWORD in kinds:
        chosen: dict[str, Any] = dict(config)
    else:
        chosen = {key: value for key, value in config.items() if key in parameters}
    for key, own in _AUPTIMIZERS.items():
        if key in parameters and key not in config:
            chosen[key] = config.get(own) or _meant(own, config)
    whole = "config" in parameters and "config" not in config
    if whole:
        chosen["config"] = config
    for key, parameter in parameters.items():
        named = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if named and key not in chosen and parameter.default is parameter.empty:
            near = nearest(key, config)
            hint = f'\n  did you mean "{near}"?' if near else ""
            raise EngineError(
                f'{name} needs "{key}", and the configuration has no such key\n'
                f"  it has: {', '.join(config) or 'nothing'}{hint}"
            )
    taken = {*chosen, *(own for key, own in _AUPTIMIZERS.items() if key in chosen), *_OF_A_JOB}
    unused = [key for key in config if key not in taken]
    if unused and not whole:
        warnings.warn(f"{name} takes no {', '.join(unused)}", UserWarning, stacklevel=4)
    return chosen


#: Parameters of scripts that were written for Auptimizer's decorator, and the keys that they are.
_AUPTIMIZERS = {"compression_type": "type", "compression_framework": "framework"}
#: Keys that every job's configuration has, whether or not its script asks for them.
_OF_A_JOB = ("save_model", "folder_name")


def _meant(key: str, config: BasicConfig) -> str:
    """Return what a key stands for that the configuration leaves out."""
    if key == "framework":
        return "torch"
    return registry.find(str(config.get("compressor"))).kind


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
