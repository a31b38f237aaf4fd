"""What a training script calls: a compressor from a configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from engine import config as configuration
from engine.compressor import Compressor
from engine.errors import ConfigError


def create_compressor(
    model: nn.Module,
    config: Mapping[str, Any] | str | os.PathLike[str],
    optimizer: Optimizer | None = None,
    **runtime: Any,
) -> Compressor:
    """Return the compressor that ``config`` describes, not yet attached.

    Args:
        model: the user's model.
        config: an experiment's mapping, its ``compression`` section, or a YAML or JSON file.
        optimizer: the optimizer that trains the model, if it exists already.
        **runtime: what cannot be written in a file, such as ``lr_scheduler``; goes to the class.

    Raises:
        ConfigError: the configuration is wrong by itself or for this model; all problems at once,
            with the file's lines.
        PluginError: the algorithm or an extension is unknown or broken.

    Example:
        >>> compressor = create_compressor(model, "compress.yaml", optimizer=optimizer)
        >>> model = compressor.compress()
    """
    settings = configuration.check(config)
    algorithm = settings.plugin.load()
    extensions = [extension.plugin.load()(**extension.arguments) for extension in settings.extensions]
    section = settings.document.data
    if settings.pointer:
        section = section["compression"]
    # The class checks and completes them itself, as for a person who calls it from Python.
    arguments = {key: section[key] for key in settings.arguments if key in section}
    try:
        compressor: Compressor = algorithm(
            model,
            section.get("config_list"),
            optimizer,
            extensions=extensions,
            **arguments,
            **runtime,
        )
    except ConfigError as error:
        raise _located(error, settings) from error
    return compressor


def _located(error: ConfigError, settings: configuration.Settings) -> ConfigError:
    """Return ``error``, found in the model, with its places in the user's document."""
    document, prefix = settings.document, settings.pointer
    problems = [
        document.problem(p.message, prefix + p.pointer, p.allowed, p.suggestion)
        for p in error.problems
    ]
    return ConfigError(problems, document.source)
