"""What a script gets as its first argument: a configuration file, read as attributes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from engine import config
from engine.errors import EngineError, nearest
from engine.files import write_whole


class BasicConfig(dict[str, Any]):
    """A dict whose keys are attributes too.

    Example:
        >>> config = BasicConfig().load(sys.argv[1])
        >>> compressor = engine.create_compressor(model, config, optimizer=optimizer)
    """

    def load(self, path: str | os.PathLike[str]) -> BasicConfig:
        """Read a JSON or YAML file into this object, replacing nothing but equal keys.

        Raises:
            ConfigError: the file is missing or no mapping in JSON or YAML.
        """
        self.update(config.read(path).data)
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the configuration as JSON, whole or not at all.

        Raises:
            EngineError: a value has no JSON form.
            ExportError: the file cannot be written.
        """
        try:
            text = json.dumps(self, indent=2)
        except (TypeError, ValueError) as error:
            raise EngineError(f"the configuration cannot be written as JSON: {error}") from error
        write_whole(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            near = nearest(name, self)
            hint = f", did you mean {near!r}?" if near else ""
            raise AttributeError(f"the configuration has no {name!r}{hint}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        del self[name]
