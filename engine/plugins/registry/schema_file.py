"""The ``schema.json`` beside a plugin's code: found and judged without importing the plugin."""

from __future__ import annotations

import json
import os
import sys
from importlib.machinery import ModuleSpec
from typing import Any

from engine.api_version import API_VERSION
from engine.plugins.registry.scan import ALGORITHMS, EXPORTERS, EXTENSIONS

KINDS = ("pruning", "quantization")
#: An extension may also serve both kinds.
EXTENSION_KINDS = (*KINDS, "any")
ROLES = ("provider", "schedule", "search", "blocks")
#: Roles of plugins that drive another algorithm, which ``base_argument`` names.
DRIVING = ("schedule", "search")
#: Whether an algorithm needs batches to be calibrated with.
CALIBRATION = ("required", "optional")
#: Whether a pruner is asked for a sparsity, or finds one.
SPARSITY = ("asked", "outcome")
EXTENSION_ROLES = ("watcher", "constraint", "training")
EXPORTER = "exporter"
#: What ``kind`` and ``role`` may be, the first role being the default.
_ALLOWED = {
    ALGORITHMS: (KINDS, ROLES),
    EXTENSIONS: (EXTENSION_KINDS, EXTENSION_ROLES),
    EXPORTERS: ((EXPORTER,), (EXPORTER,)),
}
_REQUIRED = ("kind", "api", "summary")


class FaultError(Exception):
    """Why a plugin cannot be used: a status word and the reason."""

    def __init__(self, status: str, reason: str) -> None:
        self.status = status
        self.reason = reason
        super().__init__(reason)


def _broken(reason: str) -> FaultError:
    return FaultError("broken", reason)


def find_module(name: str) -> ModuleSpec | None:
    """Return the spec of a module without importing anything, not even the packages above it.

    ``importlib.util.find_spec`` imports the parents, and a stranger's parent package may import
    torch or fail.
    """
    spec: ModuleSpec | None = None
    path: list[str] | None = None
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        spec = _find(".".join(parts[:depth]), path)
        if spec is None:
            return None
        if depth < len(parts):
            path = _locations(spec)
            if path is None:
                return None
    return spec


def _find(name: str, path: list[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, path)
        except Exception:
            continue  # a finder that fails must not take the listing down
        if spec is not None:
            return spec
    return None


def _locations(spec: ModuleSpec) -> list[str] | None:
    locations = spec.submodule_search_locations
    if locations is None:
        return None
    try:
        return list(locations)
    except KeyError:
        # A namespace package inside a package that has not been imported asks for its parent.
        return list(getattr(locations, "_path", ()))


def read(module: str) -> dict[str, Any]:
    """Return the parsed schema.json beside ``module``; FaultError says what is wrong with it."""
    spec = find_module(module)
    if spec is None:
        raise _broken(f"module {module} is not found")
    if spec.origin and spec.has_location:
        folder = os.path.dirname(spec.origin)
    else:
        folder = next(iter(_locations(spec) or ()), "")
    get_data = getattr(spec.loader, "get_data", None)
    path = os.path.join(folder, "schema.json")
    try:
        if get_data is not None and spec.origin:
            content = get_data(path)
        else:
            with open(path, "rb") as file:
                content = file.read()
    except OSError:
        raise _broken(f"no schema.json beside {module}") from None
    try:
        schema = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise _broken(f"schema.json of {module} is not UTF-8") from None
    except json.JSONDecodeError as error:
        detail = f"{error.msg}, line {error.lineno}, column {error.colno}"
        raise _broken(f"schema.json of {module} is not JSON: {detail}") from None
    except (ValueError, RecursionError):
        raise _broken(f"schema.json of {module} is not JSON that can be read") from None
    if not isinstance(schema, dict):
        raise _broken(f"schema.json of {module} is not a JSON object")
    return schema


def extended(schema: dict[str, Any]) -> str:
    """Return what ``x-engine.extends`` names, or ``""``; FaultError where that is no name."""
    facts = schema.get("x-engine")
    name = facts.get("extends", "") if isinstance(facts, dict) else ""
    if not isinstance(name, str):
        raise _broken("x-engine.extends in schema.json is not text")
    return name


def judge(schema: dict[str, Any], group: str) -> None:
    """Raise a FaultError unless the schema says what the engine must know of a plugin."""
    facts = schema.get("x-engine")
    if not isinstance(facts, dict):
        raise _broken('schema.json has no "x-engine" section')
    lacking = [f"x-engine.{key}" for key in _REQUIRED if key not in facts]
    if lacking:
        raise _broken(f"schema.json lacks {', '.join(lacking)}")
    for key in _REQUIRED:
        if not isinstance(facts[key], str):
            raise _broken(f"x-engine.{key} in schema.json is not text")
    _judge_api(facts["api"])
    kinds, roles = _ALLOWED[group]
    _one_of("kind", facts["kind"], kinds)
    _one_of("role", facts.get("role", roles[0]), roles)
    if "calibration" in facts:
        _one_of("calibration", facts["calibration"], CALIBRATION)
    if "sparsity" in facts:
        _one_of("sparsity", facts["sparsity"], SPARSITY)
        if (facts["kind"], facts.get("role", roles[0])) != ("pruning", "provider"):
            raise _broken("x-engine.sparsity is said of what is no pruner")
    properties = schema.get("properties", {})
    if not isinstance(properties, dict):
        raise _broken('"properties" in schema.json is not a JSON object')
    if facts.get("role") in DRIVING and facts.get("base_argument") not in properties:
        role = facts["role"]
        raise FaultError(
            "broken", f"x-engine.base_argument of a {role} names none of its arguments"
        )


def default_role(group: str) -> str:
    """Return the role of a plugin whose schema states none."""
    return _ALLOWED[group][1][0]


def _one_of(key: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise FaultError(
            "broken", f'x-engine.{key} is "{value}"; it is one of {", ".join(allowed)}'
        )


def _judge_api(text: str) -> None:
    major, dot, minor = text.partition(".")
    if not (dot and major.isdecimal() and minor.isdecimal()):
        raise _broken(f'x-engine.api is "{text}"; it looks like "1.0"')
    if int(major) != API_VERSION[0] or int(minor) > API_VERSION[1]:
        ours = ".".join(map(str, API_VERSION))
        raise FaultError("incompatible", f"written for engine API {text}, this engine has {ours}")
