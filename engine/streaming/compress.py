"""``engine.compress_folder``: a model that does not fit into memory, compressed block by block."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from engine import config as configuration
from engine.api_version import API_VERSION
from engine.attach.calibration_data import calibration_data
from engine.attach.compressor import Compressor
from engine.config.check import Settings
from engine.errors import EngineError, ExportError
from engine.export import FolderExporter
from engine.export.deploy import made, refuse, require_modules
from engine.export.source_layer import GridFacts
from engine.files import PathLike
from engine.files.progress import ProgressFile, Words
from engine.plugins import registry
from engine.plugins.registry import EXPORTERS, Plugin
from engine.streaming.line import Line, Order
from engine.streaming.plan import Plan, require_masks
from engine.streaming.shards import Shards, UnitSource, WholeSource
from engine.streaming.skeleton import Skeleton, skeleton_of
from engine.user_code.batches import Forward, batches_in, call_or_explain
from engine.user_code.fingerprint import mark

#: The format of weights that are written as they are.
_PLAIN = "safetensors"


class CompressedFolder(NamedTuple):
    """What was written.

    Attributes:
        path: the folder.
        files: every file, with its size in bytes.
        notes: by layer, what a person must know of how it was calibrated; "" for nothing.
    """

    path: Path
    files: dict[Path, int]
    notes: dict[str, str]


def compress_folder(
    folder: PathLike,
    config: Mapping[str, Any] | PathLike,
    out: PathLike,
    *,
    batches: Iterable[Any] | str | None = None,
    forward: Forward | str | None = None,
    to: str | None = None,
    model: Callable[[], nn.Module] | None = None,
    told: Callable[[str, int, int], object] | None = None,
) -> CompressedFolder:
    """Compress a model that is read, calibrated and written one block at a time.

    In memory are one block's weights, what its algorithm needs, and one batch; hidden states
    between blocks are on disk. The result is what the same configuration gives of the model in
    memory, bit for bit. It is made in the folder ``out.partial``; a call that was killed is made
    again and goes on behind the last block that was finished. ``out`` is there when all of it is.

    Args:
        folder: ``config.json`` of transformers and weights in safetensors, sharded or not.
        config: as for ``create_compressor``: an algorithm with ``calibrate_layer``, or one whose
            schema states the capability ``layer_by_layer``.
        out: a folder that is not there yet.
        batches: what to calibrate with, as for ``create_compressor``. They are held in memory.
        forward: ``forward(model, batch)`` runs the model, where that is not right.
        to: an exporter that writes shards (``compressed_tensors``, which quantizers have by
            default), or ``"safetensors"``: weights as they are, zeros and all, which pruners have.
        model: returns the model, where the folder is none of transformers; its parameters are made
            without values, and their names are those of the folder.
        told: called with each block's name, its number from 1, and how many there are, when it is
            finished.

    Raises:
        ConfigError: the configuration is wrong by itself, for this model, or lacks batches.
        EngineError: a shard is missing or cut off; a block's tensors are in no shard; the
            algorithm needs the whole model, or works on a weight that two layers share.
        ExportError: the format cannot hold what the algorithm makes; ``out`` is there already; the
            disk is full. What is finished stays in ``out.partial``.
        CheckpointError: ``out.partial`` is of another configuration, model or batches.
    """
    settings = configuration.check(config)
    source, target = Path(folder).resolve(), Path(out).resolve()
    if target.exists():
        raise ExportError(f"{target} is there already\n  choose a name that there is not yet")
    exporter, plugin = _exporter(to, settings)
    given = settings.given_arguments
    batches = given.get("batches") if batches is None else batches
    forward = given.get("forward") if forward is None else forward
    found, run = calibration_data(batches, forward, settings.plugin.calibration, settings.plugin)
    data = None if found is None else list(batches_in(found, "calibration"))
    skeleton = skeleton_of(source, model)
    job = _Job(skeleton, Plan(settings, skeleton), exporter, plugin)
    job.begin(target, _asked(settings, skeleton, data, to), data, run or call_or_explain)
    try:
        with _without_cache(skeleton.model):
            job.run(told)
        return job.end(target, source)
    except ExportError as error:
        if not isinstance(error.__cause__, (OSError, RuntimeError)):
            raise  # the format cannot hold it, and another call would come no further
        kept = f"\n  blocks that are finished stay in {job.work}: the same call goes on behind them"
        raise ExportError(f"{error}{kept}") from error


class _Job:
    """One call: what is to be done, and how far it has come."""

    work: Path

    def __init__(
        self, skeleton: Skeleton, plan: Plan, exporter: FolderExporter, plugin: Plugin | None
    ) -> None:
        self._skeleton = skeleton
        self._plan = plan
        self._exporter = exporter
        self._plugin = plugin
        #: By unit: "tensors", bytes of each that was written; "facts" and "notes" by layer.
        self._done: dict[str, dict[str, Any]] = {}

    def begin(
        self,
        target: Path,
        asked: Mapping[str, Any],
        batches: list[Any] | None,
        forward: Forward,
    ) -> None:
        """Look at what is done already, and find the order of units if that is not known."""
        self.work = target.with_name(f"{target.name}.partial")
        try:
            self.work.mkdir(exist_ok=True)
        except OSError as error:
            raise ExportError(f"cannot write {self.work}: {error.strerror or error}") from error
        another = f"remove {self.work}, or choose another name"
        words = Words("its progress", "another call of compress_folder", another, another)
        self._file = ProgressFile(self.work / "progress.json", asked, words)
        saved = self._file.read() or {}
        self._done = saved.get("units", {})
        self._line = None
        self._count = len(batches or ())
        names = list(self._skeleton.units)
        self._order = Order([], names, lean=False)
        if batches is not None:
            states = self.work / "states"
            self._line = Line(self._skeleton, batches, forward, states)
            with _without_cache(self._skeleton.model):
                self._order = Order(**saved["order"]) if "order" in saved else self._line.observe()
            done = [name for name in self._order.reached if name in self._done]
            self._line.follow(self._order, done)
        self._save()
        self._names = [*self._order.reached, *self._order.unreached]
        keys = {name: self._skeleton.keys(name) for name in self._names}
        first = next(name for name in self._names if keys[name])
        keys[first] = [*self._skeleton.resident_keys, *keys[first]]
        self._keys = {name: own for name, own in keys.items() if own}
        self._shards = Shards(self.work / "model", len(self._keys))

    def run(self, told: Callable[[str, int, int], object] | None) -> None:
        """Do what is left."""
        reached = self._order.reached
        layers = self._plan.layers
        behind = max((n for n, name in enumerate(reached) if name in layers), default=0)
        for number, name in enumerate(self._names, 1):
            goes_on = self._line is not None and name in reached[:behind]
            if name not in self._done:
                unit = self._skeleton.units[name]
                self._skeleton.load(unit)
                self._done[name] = self._unit(name, goes_on=goes_on)
                self._skeleton.unload(unit)
                gc.collect()
                self._save()
            if goes_on and self._line is not None:
                self._line.forget_before(name)
            if told is not None:
                told(name, number, len(self._names))

    def end(self, target: Path, source: Path) -> CompressedFolder:
        """Write the index and what lies beside the weights; give the folder its name."""
        numbers = {name: number for number, name in enumerate(self._keys, 1)}
        tensors = {numbers[n]: done["tensors"] for n, done in self._done.items() if n in numbers}
        self._shards.close(tensors, source)
        facts = {
            layer: GridFacts(**each)
            for done in self._done.values()
            for layer, each in done["facts"].items()
        }
        if self._plugin is not None:
            self._exporter.describe(WholeSource(self._skeleton.model, facts), self._shards.folder)
        self._shards.folder.replace(target)
        shutil.rmtree(self.work, ignore_errors=True)
        files = {file: file.stat().st_size for file in sorted(target.iterdir())}
        notes = {k: note for done in self._done.values() for k, note in done["notes"].items()}
        return CompressedFolder(target, files, notes)

    def _unit(self, name: str, *, goes_on: bool) -> dict[str, Any]:
        number = list(self._keys).index(name) + 1 if name in self._keys else None
        if name not in self._plan.layers:
            written = {}
            if number is not None:
                written = self._shards.copy(number, self._skeleton, self._keys[name])
            if goes_on and self._line is not None:
                self._line.finish(name)
            return {"tensors": written, "facts": {}, "notes": {}}
        assert number is not None
        forward = None if self._line is None else self._line.up_to(name)
        if name in self._order.unreached and self._line is not None:
            forward = _nothing
        compressor = self._plan.compressor(name, self._count, forward)
        with _needing_others(compressor, name):
            compressor.compress()
            require_masks(compressor)
            source = UnitSource(compressor, self._keys[name])
            if self._plugin is not None:
                refuse(self._plugin, self._exporter, source)
            written = self._shards.write(number, self._exporter, source)
        facts = {name: layer.facts._asdict() for name, layer in source.quantized.items()}
        if goes_on and self._line is not None:
            self._line.finish(name)
        compressor.unwrap(bake=True)
        return {"tensors": written, "facts": facts, "notes": compressor.calibration_notes}

    def _save(self) -> None:
        self._file.write({"order": self._order._asdict(), "units": self._done})


def _exporter(to: str | None, settings: Settings) -> tuple[FolderExporter, Plugin | None]:
    if to == _PLAIN or (to is None and settings.kind == "pruning"):
        return FolderExporter(), None
    plugin = registry.find(to or "compressed_tensors", EXPORTERS)
    exporter = made(plugin, {})
    require_modules(plugin.needs, f"{plugin.name} needs")
    if not isinstance(exporter, FolderExporter):
        raise ExportError(
            f"{plugin.name} writes one file of the whole model, not shards: a model larger than "
            f'memory can be written as "compressed_tensors" or "{_PLAIN}"'
        )
    return exporter, plugin


def _asked(
    settings: Settings, skeleton: Skeleton, batches: list[Any] | None, to: str | None
) -> dict[str, Any]:
    """Return what the result depends on, as far as it can be told from another's."""
    given = {k: v for k, v in settings.given_arguments.items() if k not in ("batches", "forward")}
    return {
        "engine": list(API_VERSION),
        "algorithm": [settings.plugin.name, settings.plugin.version],
        "config_list": settings.config_list,
        "arguments": given,
        "extensions": [[each.name, each.arguments] for each in settings.extensions],
        "to": to,
        "weights": skeleton.fingerprint,
        "batches": None if batches is None else _digest(batches),
    }


def _digest(batches: list[Any]) -> str:
    digest = hashlib.sha256()
    for leaf in tree_leaves(batches):
        if isinstance(leaf, Tensor):
            digest.update(f"{tuple(leaf.shape)} {leaf.dtype} {mark(leaf)};".encode())
        else:
            digest.update(f"{type(leaf).__name__} {leaf if _is_plain(leaf) else ''};".encode())
    return digest.hexdigest()[:16]


def _is_plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str))


def _nothing(model: nn.Module, batch: Any) -> None:
    """Run nothing: no batch reaches the unit."""


@contextlib.contextmanager
def _without_cache(model: nn.Module) -> Iterator[None]:
    """Within, a model of transformers keeps no keys and values of a batch."""
    config: Any = getattr(model, "config", None)
    before = getattr(config, "use_cache", None)
    if before is None:
        yield
        return
    config.use_cache = False
    try:
        yield
    finally:
        config.use_cache = before


@contextlib.contextmanager
def _needing_others(compressor: Compressor, name: str) -> Iterator[None]:
    """Within, a tensor without values that an algorithm computes with is a sentence."""
    try:
        yield
    except (EngineError, NotImplementedError, RuntimeError) as error:
        cause: BaseException = error
        while isinstance(cause, EngineError) and cause.__cause__ is not None:
            cause = cause.__cause__
        line = (str(cause).strip().splitlines() or [""])[0]
        if isinstance(cause, EngineError) or "meta" not in line:
            raise
        raise EngineError(
            f'{compressor.plugin_name}, at "{name}", computes with a tensor of another block, '
            f"which is not loaded: {line}\n  compress the model in memory"
        ) from error
