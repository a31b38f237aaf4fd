"""Pages that are made from the code: one per plugin, from its schema, and the hook reference.

    python docs/generate.py        # rewrites docs/hooks.md

The pages of plugins are made when the site is built; a stranger's installed plugin gets one too.
"""

import inspect
import json
import re
import textwrap
from pathlib import Path

import yaml

from engine import hookspecs
from engine.config.formats import example_command, format_facts
from engine.plugins import registry
from engine.plugins.stack import FIRST_RESULT, HOOKS

DOCS = Path(__file__).resolve().parent


def hooks_page():
    """Return the hook reference, in the order of engine/hookspecs.py."""
    parts = [
        "# Hooks",
        inspect.getdoc(hookspecs).replace("``", "`"),
        f"This is version {'.'.join(map(str, hookspecs.API_VERSION))} of the contract.",
    ]
    for name in HOOKS:
        spec = getattr(hookspecs.HookSpecs, name)
        signature = inspect.signature(spec)
        arguments = ", ".join(
            str(p).replace("'", "") for p in list(signature.parameters.values())[1:]
        )
        returns = str(signature.return_annotation).replace("'", "")
        kind = "provider: one plugin answers" if name in FIRST_RESULT else "observer: all are told"
        parts += [
            f"## {name}",
            f"`{name}({arguments}) -> {returns}` ({kind})",
            inspect.getdoc(spec).replace("``", "`"),
        ]
    return "\n\n".join(parts) + "\n"


def algorithm_page(plugin):
    """Return the page of one plugin."""
    schema = plugin.schema
    paper = plugin.paper or {}
    lines = [f"# {plugin.name}", schema.get("title", ""), schema.get("description", "")]
    lines.append(_documented(plugin))
    if paper:
        link = paper.get("url") or f"https://arxiv.org/abs/{paper.get('arxiv')}"
        authors = paper.get("authors", "")
        authors = ", ".join(authors) if isinstance(authors, list) else authors
        lines.append(f"Paper: {authors} ({paper.get('year')}). [{paper.get('title')}]({link}).")
    lines.append(
        f"Class `{plugin.attribute}`, from `{plugin.distribution}` {plugin.version}; "
        f"`{_show(plugin)}` prints the same facts."
    )
    entry = schema.get("$defs", {}).get("entry", {})
    arguments = {k: v for k, v in schema["properties"].items() if k != "config_list"}
    for title, properties, required in (
        ("Entries of config_list", entry.get("properties", {}), entry.get("required", [])),
        ("Arguments", arguments, schema.get("required", [])),
    ):
        if properties:
            lines.append(f"## {title}")
            rows = ["| name | type | default | range | meaning |", "|---|---|---|---|---|"]
            for name, given in properties.items():
                rows.append(_row(name, _resolved(given), name in required))
            lines.append("\n".join(rows))
    if plugin.group == registry.EXTENSIONS:
        lines += [_extension_example(plugin), "See [extensions](../extensions.md)."]
        return "\n\n".join(filter(None, lines)) + "\n"
    for example in schema.get("examples", [])[:1]:
        section = {"compressor": plugin.name, **example}
        text = yaml.safe_dump(section, sort_keys=False, default_flow_style=None)
        lines += ["## Example", f"```yaml\n{text}```"]
        shown = textwrap.indent(json.dumps(example["config_list"], indent=2), "")
        shown = shown.replace("true", "True").replace("false", "False")
        lines.append(
            f"```python\nfrom engine.algorithms import {plugin.attribute}\n\n"
            f"config_list = {shown}\n"
            f"compressor = {plugin.attribute}(model, config_list, optimizer)\n```"
        )
    return "\n\n".join(filter(None, lines)) + "\n"


def exporter_page(plugin):
    """Return the page of one format."""
    schema = plugin.schema
    lines = [f"# {plugin.name}", schema.get("title", ""), schema.get("description", "")]
    lines.append(_documented(plugin))
    lines.append(
        f"Class `{plugin.attribute}`, from `{plugin.distribution}` {plugin.version}; "
        f"`{_show(plugin)}` prints the same facts."
    )
    rows = [f"| {title} | {text} |" for title, text in format_facts(plugin)]
    lines += ["## What it holds", "\n".join(["| | |", "|---|---|", *rows])]
    head = ["| name | type | default | range | meaning |", "|---|---|---|---|---|"]
    rows = [_row(name, given, False) for name, given in schema.get("properties", {}).items()]
    rows += [f"| `{n}` | in Python | | | {text} |" for n, text in plugin.runtime_arguments.items()]
    if rows:
        lines += ["## Options", "\n".join([*head, *rows])]
    example = next(iter(schema.get("examples", [])), {})
    ending = plugin.endings[0]
    path = "folder" if ending == "/" else f"model{ending}"
    options = "".join(f", {name}={value!r}" for name, value in example.items())
    lines += [
        "## Example",
        f'```python\ncompressor.export("{plugin.name}", "{path}", dummy_input=x{options})\n```',
        f"```sh\n{example_command(plugin, example)}\n```",
        "See [exporting](../exporting.md).",
    ]
    return "\n\n".join(filter(None, lines)) + "\n"


def write_exporters(folder):
    """Write the pages of all usable formats into ``folder``."""
    folder.mkdir(exist_ok=True)
    exporters = [plugin for plugin in registry.exporters() if plugin.status == "ok"]
    for plugin in exporters:
        (folder / f"{plugin.name}.md").write_text(exporter_page(plugin), encoding="utf-8")
    tree = "\n".join(plugin.name for plugin in exporters)
    page = f"# Formats\n\n{_table(exporters)}\n\n```{{toctree}}\n:hidden:\n\n{tree}\n```\n"
    (folder / "index.md").write_text(page, encoding="utf-8")


def index_page(algorithms, extensions):
    """Return the tables of all plugins."""
    parts = ["# Algorithms", _table(algorithms), "## Extensions", _table(extensions)]
    tree = "\n".join(p.name for p in (*algorithms, *extensions))
    return "\n\n".join([*parts, f"```{{toctree}}\n:hidden:\n\n{tree}\n```"]) + "\n"


def _table(plugins):
    rows = ["| name | kind | class | summary |", "|---|---|---|---|"]
    rows += [
        f"| [{p.name}]({p.name}.md) | {p.label} | `{p.attribute}` | {p.summary} |" for p in plugins
    ]
    return "\n".join(rows)


def write_algorithms(folder):
    """Write the pages of all usable plugins into ``folder``."""
    folder.mkdir(exist_ok=True)
    algorithms, extensions = (
        [plugin for plugin in found if plugin.status == "ok"]
        for found in (registry.algorithms(), registry.extensions())
    )
    for plugin in (*algorithms, *extensions):
        (folder / f"{plugin.name}.md").write_text(algorithm_page(plugin), encoding="utf-8")
    (folder / "index.md").write_text(index_page(algorithms, extensions), encoding="utf-8")


def _documented(plugin):
    """Return what the class's docstring says before its list of arguments, as Markdown."""
    text = inspect.getdoc(plugin.load()) or ""
    kept = re.split(r"^(?:Args|Attributes|Raises|Returns):$", text, flags=re.MULTILINE)[0]
    return kept.replace("``", "`").strip()


def _show(plugin):
    more = " --extension" if plugin.group == registry.EXTENSIONS else ""
    return f"engine show {plugin.name}{more}"


def _extension_example(plugin):
    example = next(iter(plugin.schema.get("examples", [])), {})
    named = [{plugin.name: example}] if example else [plugin.name]
    section = {
        "compressor": "l1_filter",
        "config_list": [{"sparsity": 0.5, "op_types": ["Conv2d"]}],
        "extensions": named,
    }
    text = yaml.safe_dump(section, sort_keys=False, default_flow_style=None)
    return f"## Example\n\n```yaml\n{text}```"


def _resolved(given):
    if "$ref" not in given:
        return given
    shared = json.loads((DOCS.parent / "engine" / "config" / "shared.json").read_text())
    return {**shared["$defs"][given["$ref"].rsplit("/", 1)[1]], **given}


def _row(name, given, required):
    kind = given.get("type", "")
    kind = " or ".join(kind) if isinstance(kind, list) else kind
    if "enum" in given:
        kind = ", ".join(f"`{item}`" for item in given["enum"])
    default = (
        "required"
        if required
        else f"`{json.dumps(given['default'])}`"
        if "default" in given
        else ""
    )
    limits = [
        f"{sign} {given[key]}"
        for key, sign in (
            ("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<")
        )
        if key in given
    ]  # fmt: skip
    meaning = given.get("description", "").replace("|", "\\|")
    return f"| `{name}` | {kind} | {default} | {' and '.join(limits)} | {meaning} |"


if __name__ == "__main__":
    (DOCS / "hooks.md").write_text(hooks_page(), encoding="utf-8")
