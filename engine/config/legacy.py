"""The file format of NNI's first compression release (v1.1 and its previews), translated.

    AGPruner:
      config:
        - {start_epoch: 0, end_epoch: 10, final_sparsity: 0.8, support_type: default}
        - {prune: False, support_type: [Linear], support_op: [conv1, conv2]}

There, an entry held for a layer when its type *or* its name was listed; today both must match. An
entry with both is therefore translated to two. Names began with ``tf`` or ``torch`` at first, and
quantizers had ``q_bits``.
"""

from __future__ import annotations

from typing import Any

from engine.config.document import Document
from engine.config.plain import escape
from engine.errors import ConfigError

_SECTION_KEYS = {"compression", "compressor", "config_list", "framework", "type"}
_TYPE_KEYS = ("support_type", "support_layer", "op_types", "op_type")
_NAME_KEYS = ("support_op", "op_names", "op_name")
_SELECTORS = (*_TYPE_KEYS, *_NAME_KEYS)


def is_legacy(data: Any) -> bool:
    """Whether the data are a mapping from algorithm names to ``config:`` entries."""
    return (
        isinstance(data, dict)
        and bool(data)
        and not _SECTION_KEYS & data.keys()
        and all(isinstance(value, dict) and "config" in value for value in data.values())
    )


def translate(document: Document) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the configuration in today's form, and for its pointers those in the old file."""
    algorithms = list(document.data)
    if len(algorithms) > 1:
        names = ", ".join(algorithms)
        problem = document.problem(
            f"the file configures {len(algorithms)} algorithms: {names}",
            "",
            "an experiment has one; put each into a file of its own",
        )
        raise ConfigError([problem], document.source)
    name = algorithms[0]
    top = f"/{escape(name)}"
    framework, algorithm = _split(name)
    section: dict[str, Any] = {"framework": framework, "compressor": algorithm}
    origins = dict.fromkeys(("/framework", "/compressor", "/config_list", ""), top)
    origins["/config_list"] = f"{top}/config"
    for key, value in document.data[name].items():
        if key != "config":
            section[key] = value
            origins[f"/{escape(key)}"] = f"{top}/{escape(key)}"
    config = document.data[name]["config"]
    if not isinstance(config, list):
        section["config_list"] = config
        return section, origins
    entries: list[Any] = []
    for index, old in enumerate(config):
        for entry, renamed in _entries(old):
            new = f"/config_list/{len(entries)}"
            origins[new] = f"{top}/config/{index}"
            for key, old_key in renamed.items():
                origins[f"{new}/{escape(key)}"] = f"{top}/config/{index}/{escape(old_key)}"
            entries.append(entry)
    section["config_list"] = entries
    return section, origins


def _split(name: str) -> tuple[str, str]:
    for prefix, framework in (("torch", "pytorch"), ("tf", "tensorflow")):
        rest = name[len(prefix) :].lstrip("_")
        if name.startswith(prefix) and rest[:1].isupper():
            return framework, rest
    return "pytorch", name


def _entries(old: Any) -> list[tuple[Any, dict[str, str]]]:
    """Return one entry's translations, each with the old name of each key that was renamed."""
    if not isinstance(old, dict):
        return [(old, {})]
    renamed: dict[str, str] = {}
    settings: dict[str, Any] = {}
    selections: list[dict[str, Any]] = []
    excluded = old.get("prune") is False or old.get("exclude") is True
    for key, value in old.items():
        if key in _SELECTORS:
            today = "op_types" if key in _TYPE_KEYS else "op_names"
            renamed[today] = key
            selections.append({today: [value] if isinstance(value, str) else value})
        elif key == "prune":
            renamed["exclude"] = key
            if not isinstance(value, bool):
                settings["exclude"] = value  # for the checks to complain about
        elif key == "exclude":
            settings["exclude"] = value
        elif excluded:
            continue  # had no effect then; is refused today
        elif key == "q_bits":
            renamed.update(quant_types=key, quant_bits=key)
            settings.update(quant_types=["weight"], quant_bits=value)
        else:
            settings[key] = value
    if excluded:
        settings["exclude"] = True
    return [({**settings, **selection}, renamed) for selection in selections or [{}]]


def render(data: dict[str, Any]) -> str:
    """Return the translation as YAML, indented, for the deprecation notice."""
    import yaml

    text: str = yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=88)
    return "".join(f"    {line}\n" for line in text.splitlines())
