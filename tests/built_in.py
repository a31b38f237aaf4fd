"""What the distribution's entry points say is built in, read without the engine."""

import tomllib
from pathlib import Path

_PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]

ALGORITHMS = sorted(_PROJECT["entry-points"]["engine.algorithms"])
EXTENSIONS = sorted(_PROJECT["entry-points"]["engine.extensions"])
EXPORTERS = sorted(_PROJECT["entry-points"]["engine.exporters"])
