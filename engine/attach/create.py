"""What a training script calls: a compressor from a configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from engine import config as configuration
from engine.attach.compressor import Compressor
from engine.errors import ConfigError
from engine.plugins import registry


def create_compressor(
    model: nn.Module,
    config: Mapping[str, Any] | str | os.PathLike[str] | configuration.Document,
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
    extensions = [
        registry.find(extension.name, registry.EXTENSIONS).load()(**extension.arguments)
        for extension in settings.extensions
    ]
    extensions += runtime.pop("extensions", ())
    try:
        # The class checks and completes the entries itself, as for a person who calls it.
        compressor: Compressor = algorithm(
            model,
            settings.config_list,
            optimizer,
            extensions=extensions,
            **settings.given_arguments,
            **runtime,
        )
    except ConfigError as error:
        raise settings.located(error) from error
    return compressor
