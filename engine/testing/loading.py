"""Checks of importing a plugin, and of what its class is."""

from __future__ import annotations

from engine.attach.compressor import Compressor
from engine.export.exporter import Exporter
from engine.plugins.stack import Stack
from engine.pruning.blocks import BlockPruner
from engine.pruning.pruner import Pruner
from engine.pruning.schedule import Schedule
from engine.quantization.quantizer import Quantizer
from engine.testing.apart import ask
from engine.testing.outcome import (
    BLOCKS,
    EXPORTER,
    EXTENSION_ROLES,
    PRUNER,
    QUANTIZER,
    SCHEDULE,
    SEARCH,
    CheckSkippedError,
    check,
    require,
)
from engine.testing.subject import Subject

_BASES: dict[str, type[Compressor]] = {
    PRUNER: Pruner,
    QUANTIZER: Quantizer,
    SCHEDULE: Pruner,
    SEARCH: Pruner,
    BLOCKS: BlockPruner,
}
#: An import may cost this share of importing torch itself.
_SHARE = 0.1


@check(runs_code=False)
def it_loads_without_side_effects(subject: Subject) -> str:
    """Importing it prints nothing, changes nothing in the process, and loads nothing heavy."""
    if subject.plugin.fault is not None:
        raise CheckSkippedError("the plugin is not usable")
    module = subject.plugin.module
    found = ask({"module": module})
    require(not found["error"], f"it cannot be imported: {found['error']}")
    require(not found["changed"], f"importing it changes: {', '.join(found['changed'])}")
    own = module.partition(".")[0]
    others = [name for name in found["loaded"] if name != own and not name.startswith("_")]
    share = found["seconds"] / found["torch"]
    require(
        share < _SHARE or not others,
        f"importing it costs {share:.0%} of importing torch and loads {', '.join(others)}: "
        "import what is heavy where it is used",
    )
    return f"{share:.1%} of importing torch"


@check(runs_code=False)
def its_class_is_of_its_kind(subject: Subject) -> None:
    """The class that the entry point names is there, and has its kind's base, or hooks."""
    if subject.plugin.fault is not None:
        raise CheckSkippedError("the plugin is not usable")
    cls, role = subject.cls, subject.role
    if role in EXTENSION_ROLES:
        Stack([subject.extension()])
        return
    if role == EXPORTER:
        named = f"{cls.__name__} is no subclass of engine.export.Exporter"
        require(issubclass(cls, Exporter), named)
        return
    base = _BASES[role]
    require(issubclass(cls, base), f"{cls.__name__} is no subclass of engine.{base.__name__}")
    require(
        role in (SCHEDULE, SEARCH) or not issubclass(cls, Schedule),
        f'{cls.__name__} is a schedule: x-engine.role must be "{SCHEDULE}" or "{SEARCH}"',
    )
