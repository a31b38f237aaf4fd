"""``compressor.export(to, path)``: a format found by name, checked, written whole, compared."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from engine.config.options import check_options
from engine.errors import EngineError, ExportError, PluginError
from engine.export.comparison import require_choice
from engine.export.exporter import Exporter, Refused
from engine.export.expressible import inexpressible
from engine.export.job_export import placed
from engine.export.ready import require_attached, require_ranges, warn_without_masks
from engine.export.source import Source
from engine.files import PathLike
from engine.files.folder import write_folder
from engine.files.together import write_together
from engine.plugins import registry
from engine.plugins.registry import EXPORTERS, Plugin
from engine.quantization.placement import Placement

if TYPE_CHECKING:
    from engine.attach.compressor import Compressor

#: Of layers that are refused, so many are named.
_NAMED = 8


class Exported(NamedTuple):
    """What was written.

    Attributes:
        path: the file or folder.
        files: every file, with its size in bytes.
        placements: which operators compute with integers, where the format says so.
    """

    path: Path
    files: dict[Path, int]
    placements: list[Placement]


def export_to(
    compressor: Compressor,
    to: str,
    path: PathLike,
    *,
    dummy_input: Any = None,
    compare: str = "error",
    folder_name: PathLike | None = None,
    options: Mapping[str, Any],
) -> Exported:
    """Write the compressor's model in the format of the exporter ``to``; see ``export``."""
    plugin = registry.find(to, EXPORTERS)
    exporter = made(plugin, options)
    (target,) = placed(folder_name, path)
    require_choice(compare)
    require_ending(plugin, target)
    require_modules(plugin.needs, f"{plugin.name} needs")
    _ready(compressor)
    example = dummy_input if dummy_input is not None else compressor.dummy_input
    source = Source(compressor, example, compare)
    refuse(plugin, exporter, source)
    return write(plugin, exporter, source, target)


def made(plugin: Plugin, options: Mapping[str, Any]) -> Exporter:
    """Return an exporter with ``options``.

    Raises:
        ConfigError: options that it has not, or values that they may not have.
        PluginError: it cannot be imported.
    """
    runtime = {key: options[key] for key in plugin.runtime_arguments if key in options}
    rest = {key: value for key, value in options.items() if key not in runtime}
    checked = check_options(plugin, rest)
    cls = plugin.load()
    with _blamed(plugin, "made"):
        exporter: Exporter = cls(**checked, **runtime)
    return exporter


def require_ending(plugin: Plugin, path: PathLike) -> None:
    """Raise ExportError where a name does not end as the format's files do."""
    endings = plugin.endings
    try:
        name = os.fspath(path)
    except TypeError as error:
        raise ExportError(f"a file's path is needed, got {path!r}") from error
    if not endings or "/" in endings or str(name).endswith(endings):
        return
    stem = Path(name).with_suffix("") if Path(name).suffix else Path(name)
    raise ExportError(
        f"{name}: {plugin.name} writes files that end in {' or '.join(endings)}\n"
        f'  did you mean "{stem}{endings[0]}"?'
    )


def missing(modules: Mapping[str, str]) -> dict[str, str]:
    """Return those of ``modules`` that are not installed, with what pip installs them by."""
    return {name: by for name, by in modules.items() if importlib.util.find_spec(name) is None}


def require_modules(modules: Mapping[str, str], who: str) -> None:
    """Raise ExportError where one of ``modules`` is not installed."""
    lacking = missing(modules)
    if lacking:
        by = " ".join(f"'{each}'" for each in dict.fromkeys(lacking.values()))
        raise ExportError(f"{who} {' and '.join(lacking)}\n  pip install {by}")


def refuse(plugin: Plugin, exporter: Exporter, source: Source) -> None:
    """Raise ExportError with every layer that the format cannot hold, and why."""
    found = list(inexpressible(source, plugin.expresses))
    if not found:
        with _blamed(plugin, "asked what it refuses"):
            found = list(exporter.refusals(source))
    if found:
        raise ExportError(_sentence(plugin, found))


def write(plugin: Plugin, exporter: Exporter, source: Source, target: PathLike) -> Exported:
    """Write, compare and give the result its name.

    Raises:
        ExportError: it cannot be written, or computes something else than the model; nothing is
            left, and what was there before is as it was.
    """
    placements: list[Placement] = []

    def made_at(place: Path) -> None:
        with _blamed(plugin, "writing"):
            placements.extend(exporter.write(source, place) or ())
        if source.compare == "no" or not source.has_example:
            return
        lacking = missing(plugin.reader)
        if lacking:
            warnings.warn(
                f"{target} was not compared with the model: {' and '.join(lacking)} "
                f"{'is' if len(lacking) == 1 else 'are'} not installed",
                stacklevel=5,
            )
            return
        exporter.compare(source, place)

    if "/" in plugin.endings:
        path = write_folder(target, made_at)
        files = sorted(each for each in path.rglob("*") if each.is_file())
    else:
        path = write_together(target, made_at, ".data")
        beside = path.with_name(f"{path.name}.data")
        files = [path, *([beside] if beside.exists() else [])]
    return Exported(path, {each: each.stat().st_size for each in files}, placements)


@contextmanager
def _blamed(plugin: Plugin, when: str) -> Iterator[None]:
    """Within, what is raised and is neither for a person nor of the disk is the plugin's fault."""
    try:
        yield
    except (EngineError, OSError):
        raise
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0]
        cause = f"{type(error).__name__}: {line}".rstrip(": ")
        raise PluginError(
            f"{plugin.name} ({plugin.origin}) failed while it was {when}\n  {cause}",
            plugin=plugin.name,
            distribution=plugin.origin,
        ) from error


def _ready(compressor: Compressor) -> None:
    """Raise or warn where the compressor has not done what is to be written."""
    if compressor.kind == "pruning":
        compressor._finishing()  # type: ignore[attr-defined]
        if compressor.speedup_report is not None:  # type: ignore[attr-defined]
            return  # what was masked is gone, and the pruner has nothing to be attached to
        require_attached(compressor)
        warn_without_masks(compressor)  # type: ignore[arg-type]
        return
    require_attached(compressor)
    require_ranges(compressor)  # type: ignore[arg-type]


def _sentence(plugin: Plugin, found: Sequence[Refused]) -> str:
    lines = [f"{plugin.name} cannot hold this model; nothing was written"]
    by_reason: dict[str, list[str]] = {}
    for layer, reason in found:
        by_reason.setdefault(reason, []).append(layer)
    for reason, layers in by_reason.items():
        first, *rest = reason.splitlines()
        # What a quantizer says of a layer names it itself.
        named = bool(layers[0]) and f'layer "{layers[0]}"' in first
        lines += [f"  {first if named else f'{_who(layers)}: {first}'}", *(f"  {r}" for r in rest)]
    return "\n".join(lines)


def _who(layers: Sequence[str]) -> str:
    if layers == [""]:
        return "the model"
    shown = ", ".join(f'"{layer}"' for layer in layers[:_NAMED])
    more = f" and {len(layers) - _NAMED} more" if len(layers) > _NAMED else ""
    return f"layer{'s' if len(layers) > 1 else ''} {shown}{more}"
