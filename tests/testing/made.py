"""Plugins made for a test of the checks: a class of faulty_algorithms.py, and a schema."""

import copy
from pathlib import Path

from engine.plugins import registry

CODE = (Path(__file__).parent / "faulty_algorithms.py").read_text()
_SHARED = "engine:config#/$defs/"
_SELECTION = {key: {"$ref": _SHARED + key} for key in ("op_types", "op_names", "exclude")}
_EPOCHS = {"description": "How long", "type": "integer", "default": 2, "x-unit": "epochs"}

_ENTRIES = {
    "pruner": {"sparsity": {"$ref": f"{_SHARED}sparsity"}},
    "search": {"sparsity": {"$ref": f"{_SHARED}sparsity"}},
    "blocks": {"sparsity": {"$ref": f"{_SHARED}sparsity"}},
    "quantizer": {
        "quant_types": {
            "$ref": f"{_SHARED}quant_types",
            "items": {"type": "string", "enum": ["weight"]},
        },
        "quant_bits": {"description": "Bits", "type": "integer", "minimum": 2, "maximum": 8},
    },
    "schedule": {
        "final_sparsity": {"$ref": f"{_SHARED}sparsity", "x-provides": "sparsity"},
        "epochs": _EPOCHS,
    },
}
_EXAMPLES = {
    "pruner": {"sparsity": 0.5},
    "search": {"sparsity": 0.5},
    "blocks": {"sparsity": 0.5},
    "quantizer": {"quant_types": ["weight"], "quant_bits": 3},
    "schedule": {"final_sparsity": 0.5},
}


def schema_of(role, **check):
    """Return a complete schema for a plugin of this role; ``check`` is x-engine.check."""
    facts = {
        "kind": "quantization" if role == "quantizer" else "pruning",
        "api": "1.0",
        "summary": "Made for a test",
    }
    if check:
        facts["check"] = check
    properties = {}
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Made for a test",
        "x-engine": facts,
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "examples": [{}],
    }
    if role not in _ENTRIES:
        return {**schema, "x-engine": {**facts, "role": role, "kind": "any"}}
    if role == "search":
        facts["runtime_arguments"] = {"evaluator": "says how good a model is"}
    if role == "blocks":
        facts.update(role=role, api="1.1", calibration="required")
        facts["check"] = {"model": "engine.testing.networks:residual_stack", **check}
    if role in ("schedule", "search"):
        facts.update(role=role, base_argument="pruning_algorithm")
        properties["pruning_algorithm"] = {
            "description": "The pruner inside",
            "type": "string",
            "default": "level",
        }
    properties["config_list"] = {
        "type": "array",
        "minItems": 1,
        "items": {"$ref": "#/$defs/entry"},
    }
    settings = copy.deepcopy(_ENTRIES[role])
    entry = {
        "type": "object",
        "properties": {**settings, **_SELECTION},
        "required": [name for name, each in settings.items() if "default" not in each],
        "additionalProperties": False,
    }
    example = {"config_list": [{**_EXAMPLES[role], "op_types": ["default"]}]}
    return {
        **schema,
        "required": ["config_list"],
        "$defs": {"entry": entry},
        "examples": [example],
    }


def made(site, cls, role, schema=None, code=CODE, **check):
    """Install a class of ``code`` as the plugin ``made``; return it."""
    groups = {"exporter": "exporters"}
    groups |= dict.fromkeys(("watcher", "constraint", "training"), "extensions")
    group = groups.get(role, "algorithms")
    site.distribution("made-for-tests", **{group: [("made", f"made_for_tests:{cls}")]})
    site.package("made_for_tests", code=code, schema=schema or schema_of(role, **check))
    registry.refresh()
    listed = getattr(registry, group)()
    (plugin,) = [each for each in listed if each.name == "made"]
    return plugin
