"""The conformance suite: every check, run on one plugin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module

from engine.errors import EngineError, PluginError, nearest
from engine.plugins import registry
from engine.plugins.registry import ALGORITHMS, EXPORTERS, EXTENSIONS, Plugin
from engine.testing.outcome import CHECKS as CHECKS
from engine.testing.outcome import FAILED, SKIPPED, Check, Result, run
from engine.testing.subject import Subject

#: The modules whose checks are registered when they are imported: the order of a report.
_MODULES = (
    "description",
    "loading",
    "masks",
    "blocks",
    "quantized",
    "lifecycle",
    "searching",
    "composition",
    "extensions",
    "exporting",
    "results",
)
#: The check without which no other has a meaning.
_NEEDED = "the_schema_is_json_schema"
_PATHS = [f"engine.testing.{name}" for name in _MODULES]
for _path in _PATHS:
    import_module(_path)
# Whoever has imported one of them before has not changed the order.
CHECKS.sort(key=lambda each: _PATHS.index(each.function.__module__))


def checks_for(plugin: Plugin) -> list[Check]:
    """Return the checks that are about plugins of this role, in order.

    Of a plugin whose role cannot be read, only its description is checked.
    """
    role = plugin.label
    return [each for each in CHECKS if role in each.roles or (not role and not each.runs_code)]


def check_plugin(plugin: Plugin, only: Sequence[str] | None = None) -> Iterator[Result]:
    """Run every check on a plugin and yield what became of each.

    Where the plugin cannot be imported, or its schema not be used, the checks that would are
    skipped.

    Args:
        plugin: from the registry.
        only: names of checks; without it, all that are about plugins of this role.

    Raises:
        EngineError: a name of ``only`` is no check for this plugin.
    """
    subject = Subject(plugin)
    cannot = ""
    for each in _chosen(checks_for(plugin), only):
        if each.runs_code and not cannot:
            try:
                _ = subject.cls
            except PluginError as error:
                cannot = "; ".join(line.strip() for line in str(error).splitlines()[:2])
        if each.runs_code and cannot:
            yield Result(each.name, each.claim, SKIPPED, cannot, 0.0)
            continue
        result = run(each, subject)
        if result.outcome == FAILED and each.name == _NEEDED:
            cannot = "its schema cannot be used"
        yield result


def _chosen(checks: list[Check], only: Sequence[str] | None) -> list[Check]:
    if only is None:
        return checks
    names = [each.name for each in checks]
    for name in only:
        if name not in names:
            near = nearest(name, names)
            hint = f'\n  did you mean "{near}"?' if near else ""
            raise EngineError(f'no check for it is called "{name}"\n  {", ".join(names)}{hint}')
    return [each for each in checks if each.name in only]


def find(name: str) -> Plugin:
    """Return the algorithm, extension or exporter called ``name``, also one that cannot be used.

    Raises:
        UnknownPlugin: there is none.
    """
    groups = (ALGORITHMS, EXTENSIONS, EXPORTERS)
    listed = [(group, registry.in_group(group)) for group in groups]
    for group, plugins in listed:
        found = registry.resolve(name, group)
        if isinstance(found, Plugin):
            return found
        own = [p for p in plugins if name in (p.name, p.qualified_name)]
        if own:
            return own[0]
    names = [plugin.name for _, plugins in listed for plugin in plugins]
    raise _unknown(name, names)


def _unknown(name: str, names: list[str]) -> registry.UnknownPlugin:
    near = nearest(name, names)
    hint = f'\n  did you mean "{near}"?' if near else ""
    return registry.UnknownPlugin(
        f'no algorithm, extension or exporter is called "{name}"\n'
        f"  installed: {', '.join(names)}{hint}",
        plugin=name,
    )
