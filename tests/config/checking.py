"""What the tests of checking share."""

import pytest

from engine import config
from engine.errors import ConfigError


def section(compressor="level", **more):
    entry = {"sparsity": 0.5, "op_types": ["default"]}
    return {"compressor": compressor, "config_list": [entry], **more}


def entry(compressor, *entries, **more):
    return {"compressor": compressor, "config_list": list(entries), **more}


def message(source):
    with pytest.raises(ConfigError) as caught:
        config.check(source)
    return str(caught.value)


def problem(source):
    """Return the only problem's text, without the heading."""
    heading, _, rest = message(source).partition("\n\n")
    assert heading == "configuration: 1 problem"
    return rest
