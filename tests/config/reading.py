"""What the tests of reading share."""

import pytest

from engine import config
from engine.errors import ConfigError

TOO_LARGE = (
    "1 problem\n\n/\n  the configuration is nested too deeply or too large\n"
    "  at most 50 levels and 100,000 values, aliases expanded"
)


def write(tmp_path, content, name="c.yaml"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def message(source):
    """Return the whole message, with the file's folder left out."""
    with pytest.raises(ConfigError) as caught:
        config.read(source)
    folder = str(source).rpartition("/")[0]
    return str(caught.value).replace(f"{folder}/", "") if folder else str(caught.value)


def yaml_message(tmp_path, content):
    return message(write(tmp_path, content))


def json_message(tmp_path, content):
    return message(write(tmp_path, content, "c.json"))


def data(tmp_path, content, name="c.yaml"):
    return config.read(write(tmp_path, content, name)).data
