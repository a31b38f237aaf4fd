"""``engine new-algorithm NAME --kind KIND``: a complete package with a plugin that works."""

from __future__ import annotations

import argparse
import keyword
import re
from pathlib import Path

from engine.errors import EngineError
from engine.plugins import registry
from engine.plugins.registry import Plugin
from engine.plugins.registry.schema_file import find_module

KINDS = ("pruning", "quantization", "schedule", "extension", "exporter")
#: Words that say nothing: left in place they would collide with the next author's.
_PLACEHOLDERS = {
    *(
        "algorithm",
        "engine",
        "example",
        "exporter",
        "extension",
        "name",
        "plugin",
        "pruner",
        "pruning",
    ),
    *("quantization", "quantizer", "schedule", "template"),
    *("my_algorithm", "my_exporter", "my_extension", "my_plugin"),
}
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_LONGEST = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="such as magnitude_squared")
    parser.add_argument("--kind", choices=KINDS, help="what the plugin does")
    parser.add_argument(
        "--output", metavar="DIR", default=".", help="where the package's folder is made (here)"
    )
    parser.add_argument(
        "--update", metavar="DIR", help="bring a package up to date with this engine's template"
    )


def run(args: argparse.Namespace) -> int:
    """Render the package, or update one; say what to do next."""
    from engine.cli import scaffold, version

    if args.update is not None:
        if args.name is not None or args.kind is not None:
            raise EngineError("--update takes the package's folder alone, no NAME and no --kind")
        return _tell(scaffold.update(Path(args.update)))
    if args.name is None or args.kind is None:
        lacking = "a name" if args.name is None else f"--kind, one of: {', '.join(KINDS)}"
        raise EngineError(
            f"new-algorithm needs {lacking}\n"
            "  for one: engine new-algorithm magnitude_squared --kind pruning"
        )
    check_name(args.name)
    target = scaffold.create(Path(args.output), args.name, args.kind, version())
    print(f"{target}: a plugin that works as it is ({args.kind})")
    print(f"  pip install -e {target}")
    print(f"  engine check {args.name}")
    return 0


def check_name(name: str) -> None:
    """Raise EngineError unless ``name`` is one that a new plugin can have."""
    if not _NAME.fullmatch(name) or keyword.iskeyword(name) or len(name) > _LONGEST:
        near = _nearest_valid(name)
        raise EngineError(
            f'"{name}" cannot be the name of a plugin\n'
            f"  lower-case letters, digits and single _, a letter first, at most {_LONGEST}, "
            "no word of Python" + (f'\n  did you mean "{near}"?' if near else "")
        )
    if name in _PLACEHOLDERS:
        raise EngineError(
            f'"{name}" says nothing about the plugin, and the next author would take it, too\n'
            "  name it after what it does, such as magnitude_squared"
        )
    for plugin in [*registry.algorithms(), *registry.extensions(), *registry.exporters()]:
        if name in (plugin.name, *plugin.aliases):
            called = "" if name == plugin.name else f", which is also called {name}"
            raise EngineError(
                f'"{name}" is taken by {plugin.name} ({plugin.origin}){called}\n  {_advice(plugin)}'
            )
    module = f"engine_{name}"
    if find_module(module) is not None:
        raise EngineError(f'"{name}" is taken: there is a module {module} already')


def _advice(plugin: Plugin) -> str:
    if plugin.comes_from(registry.OWN_DISTRIBUTION):
        return "names of built-in plugins are reserved: choose another"
    return f"choose another, or uninstall {plugin.distribution}"


def _nearest_valid(name: str) -> str | None:
    """Return ``name`` in the form that a name has, if something is left of it."""
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    words = "_".join(re.findall(r"[a-z0-9]+", split.lower())).lstrip("0123456789_")
    words = words[:_LONGEST].rstrip("_")
    return words if _NAME.fullmatch(words) and not keyword.iskeyword(words) else None


def _tell(done: dict[str, list[str]]) -> int:
    for what in ("replaced", "added"):
        for place in done[what]:
            print(f"{what}  {place}")
    for place in done["kept"]:
        print(f"kept      {place}: you have changed it; the template's is in {place}.new")
    if not any(done.values()):
        print("nothing to do: the package is as the template has it")
    return int(bool(done["kept"]))
