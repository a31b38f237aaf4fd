"""``engine export FILE --to NAME``: one file or folder in the format of an exporter."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.cli.export_inputs import batches_of, example_of, shape_of
from engine.cli.table import table
from engine.errors import EngineError, nearest

if TYPE_CHECKING:
    from engine.attach.compressor import Compressor
    from engine.config import Settings
    from engine.plugins.registry import Plugin
    from engine.quantization.placement import Placement

_HEADER = ("LAYER", "OPERATOR", "COMPUTES IN", "REASON")
_LIMITS = (40, 12, 11, 60)
#: Options of the command that belong to the way without ``--to``, and what stands for them.
_OTHERS = {
    "onnx": "--to onnx",
    "dynamic": "--set dynamic_axes=...",
    "opset": "--set opset_version=...",
    "ranges": "compressor.export_model",
    "masks": "compressor.export_model",
    "speedup": "compressor.apply_speedup",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is for ``--to``."""
    group = parser.add_argument_group("in a format of its own")
    group.add_argument(
        "--to",
        metavar="NAME",
        help="an exporter; engine list-algorithms --exporters lists them, engine show NAME prints "
        "its options",
    )
    group.add_argument(
        "--set",
        metavar="OPTION=VALUE",
        action="append",
        default=[],
        help="an option of the exporter, its value as in YAML; may be repeated",
    )
    group.add_argument(
        "--example",
        metavar="FILE",
        help="example inputs by torch.save: a tensor, a tuple of them, or a mapping of keywords",
    )


def run(
    args: argparse.Namespace,
    restored: Callable[[Settings, argparse.Namespace], Compressor],
    settings: Settings,
) -> int:
    """Write the file and say what is in it."""
    from engine.config.options import check_options
    from engine.plugins import registry

    plugin = registry.find(args.to, registry.EXPORTERS)
    _refuse_others(args)
    options = _options(args.set, plugin)
    check_options(plugin, options)
    shape = shape_of(args.input_shape)
    if args.batches is not None:
        if "batches" not in plugin.runtime_arguments:
            raise EngineError(f"--batches: {plugin.name} takes no batches")
        options["batches"] = batches_of(args.batches)
    compressor: Any = restored(settings, args)
    if args.load_ranges is not None:
        if not hasattr(compressor, "load_calibration"):
            raise EngineError(f"--load-ranges: {settings.plugin.name} is a pruner, which has none")
        compressor.load_calibration(args.load_ranges)
    example = None if args.example is None else example_of(args.example)
    if example is None and shape is not None:
        from engine.export.onnx_file import example_of as example_of_shape

        example = example_of_shape(compressor.bound_model, shape, None)
    written = compressor.export(
        plugin.qualified_name, args.output, dummy_input=example, compare=args.compare, **options
    )
    _tell(args, written)
    return 0


def operators(placements: Sequence[Placement]) -> str:
    """Return which operators compute with integers, as a sentence and a table."""
    integer = sum(placement.integer for placement in placements)
    rows = [
        (p.layer or "(model)", p.operator, "integers" if p.integer else "float", p.reason)
        for p in placements
    ]
    head = f"{integer} of {len(placements)} operators compute with integers:"
    return f"{head}\n{table(_HEADER, rows, _LIMITS)}"


def _refuse_others(args: argparse.Namespace) -> None:
    for name, instead in _OTHERS.items():
        if getattr(args, name):
            raise EngineError(
                f"--{name} does not go with --to, which writes one thing\n  see {instead}"
            )


def _options(given: Sequence[str], plugin: Plugin) -> dict[str, Any]:
    """Return the options of items such as "accuracy_level=4"."""
    import yaml

    options: dict[str, Any] = {}
    for item in given:
        name, sign, text = item.partition("=")
        if not sign or not name:
            near = nearest(name, plugin.schema.get("properties", {}))
            hint = f"\n  did you mean {near}=...?" if near else ""
            raise EngineError(f'--set needs OPTION=VALUE, got "{item}"{hint}')
        try:
            options[name.strip()] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise EngineError(f'--set {name}: "{text}" is no value of YAML') from error
    return options


def _tell(args: argparse.Namespace, written: Any) -> None:
    sizes: Mapping[str, int] = {str(path): size for path, size in written.files.items()}
    if args.json:
        operators_ = [placement._asdict() for placement in written.placements]
        print(json.dumps({"files": sizes, "operators": operators_}, indent=2))
        return
    for path, size in sizes.items():
        print(f"{path}: {size:,} bytes")
    if written.placements:
        print(f"\n{operators(written.placements)}")
