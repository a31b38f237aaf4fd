"""Hidden states: what a block put out for each batch, kept in memory or on disk.

What nobody reads any more is forgotten: of its tensors the shapes stay, and zeros are put out.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import (
    TreeSpec,
    tree_flatten,
    tree_unflatten,
    treespec_dumps,
    treespec_loads,
)

from engine.errors import CheckpointError, EngineError
from engine.files import load_tensors, write_whole


class States(ABC):
    """What one block put out in each of its calls, for each batch."""

    @abstractmethod
    def put(self, number: int, outputs: list[Any]) -> None:
        """Keep what came of a batch."""

    @abstractmethod
    def get(self, number: int) -> list[Any]:
        """Return fresh tensors: the code after a block may change them in place.

        Zeros where they were forgotten; nothing where there are none.
        """

    @abstractmethod
    def forget(self) -> None:
        """Keep the shapes alone."""

    @abstractmethod
    def shapes(self) -> States:
        """Return the same, forgotten, and leave this as it is."""

    @abstractmethod
    def close(self) -> None:
        """Remove what is on disk and shall not stay there."""


class TemporaryStates(States):
    """States for as long as a process runs.

    Args:
        folder: where tensors lie in files, in a folder of their own; in memory without it.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._outputs: dict[int, tuple[list[Any], TreeSpec]] = {}
        self._folder = None if folder is None else tempfile.TemporaryDirectory(dir=folder)

    def put(self, number: int, outputs: list[Any]) -> None:
        """Keep what came of a batch: its tensors where they belong, the rest in memory."""
        leaves, spec = tree_flatten(outputs)
        if self._folder is not None:
            tensors = [_whole(leaf) for leaf in leaves if isinstance(leaf, Tensor)]
            write_whole(self._file(number), lambda temporary: torch.save(tensors, temporary))
            leaves = [_FILED if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._outputs[number] = leaves, spec

    def get(self, number: int) -> list[Any]:
        """Return fresh tensors, zeros where they were forgotten."""
        if number not in self._outputs:
            return []
        leaves, spec = self._outputs[number]
        fresh = [_fresh(leaf) for leaf in self._read(number, leaves)]
        outputs: list[Any] = tree_unflatten(fresh, spec)
        return outputs

    def forget(self) -> None:
        """Keep the shapes alone; files are removed."""
        self._outputs = self._forgotten()
        self.close()

    def shapes(self) -> States:
        """Return the same, forgotten."""
        other = TemporaryStates()
        other._outputs = self._forgotten()
        return other

    def close(self) -> None:
        """Remove the files."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _forgotten(self) -> dict[int, tuple[list[Any], TreeSpec]]:
        return {
            number: ([_skipped(leaf) for leaf in self._read(number, leaves)], spec)
            for number, (leaves, spec) in self._outputs.items()
        }

    def _read(self, number: int, leaves: list[Any]) -> list[Any]:
        if not any(leaf is _FILED for leaf in leaves):
            return leaves
        tensors = iter(torch.load(self._file(number), weights_only=True))
        return [next(tensors) if leaf is _FILED else leaf for leaf in leaves]

    def _file(self, number: int) -> Path:
        assert self._folder is not None
        return Path(self._folder.name, str(number))


class LastingStates(States):
    """States in files that another process goes on from.

    Args:
        folder: holds a file for each batch and nothing else; made if need be.
        name: the block's, for messages.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name

    def put(self, number: int, outputs: list[Any]) -> None:
        """Write what came of a batch, whole or not at all.

        Raises:
            EngineError: it holds something else than tensors and plain values.
            ExportError: the disk is full.
        """
        leaves, spec = tree_flatten(outputs)
        for leaf in leaves:
            if not isinstance(leaf, (Tensor, bool, int, float, str, type(None))):
                raise EngineError(
                    f'"{self._name}" puts out a {type(leaf).__name__}, which cannot be kept on '
                    "disk\n  give a forward() with which blocks put out tensors and plain values "
                    "(no cache of keys and values, say)"
                )
        self._write(number, [_whole(leaf) for leaf in leaves], spec)

    def get(self, number: int) -> list[Any]:
        """Return what the file holds, zeros where it was forgotten.

        Raises:
            CheckpointError: the file is damaged.
        """
        file = self._folder / str(number)
        if not file.exists():
            return []
        leaves, spec = self._saved(file)
        outputs: list[Any] = tree_unflatten([_fresh(leaf) for leaf in leaves], spec)
        return outputs

    def forget(self) -> None:
        """Keep the shapes alone."""
        for file in self._files():
            leaves, spec = self._saved(file)
            if any(isinstance(leaf, Tensor) for leaf in leaves):
                self._write(int(file.name), [_skipped(leaf) for leaf in leaves], spec)

    def shapes(self) -> States:
        """Return the same, forgotten, in memory."""
        other = TemporaryStates()
        for file in self._files():
            leaves, spec = self._saved(file)
            other._outputs[int(file.name)] = [_skipped(leaf) for leaf in leaves], spec
        return other

    def close(self) -> None:
        """Do nothing: the files stay."""

    def _files(self) -> list[Path]:
        found = self._folder.iterdir() if self._folder.is_dir() else ()
        return sorted(file for file in found if file.name.isdigit())

    def _write(self, number: int, leaves: list[Any], spec: TreeSpec) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        skipped = {n: str(leaf.device) for n, leaf in enumerate(leaves) if _is_skipped(leaf)}
        value = {
            "leaves": [leaf.like if _is_skipped(leaf) else leaf for leaf in leaves],
            "skipped": skipped,
            "spec": treespec_dumps(spec),
        }
        write_whole(self._folder / str(number), lambda temporary: torch.save(value, temporary))

    def _saved(self, file: Path) -> tuple[list[Any], TreeSpec]:
        saved = load_tensors(file, map_location=None)
        try:
            leaves = list(saved["leaves"])
            for number, device in saved["skipped"].items():
                leaves[number] = _Skipped(leaves[number], torch.device(device))
            return leaves, treespec_loads(saved["spec"])
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{file} holds no hidden states of this engine") from error


class _Skipped(NamedTuple):
    """Stands for a tensor that nobody reads any more: its shape alone is kept."""

    like: Tensor
    device: torch.device


#: Stands for a tensor that is in the batch's file.
_FILED = object()


def _is_skipped(leaf: Any) -> bool:
    return isinstance(leaf, _Skipped)


def _skipped(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    return _Skipped(torch.empty_like(leaf, device="meta"), leaf.device)


def _fresh(leaf: Any) -> Any:
    if isinstance(leaf, _Skipped):
        return torch.zeros_like(leaf.like, device=leaf.device)
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _whole(leaf: Any) -> Any:
    """Return what is saved of a leaf: of a tensor what it shows, not what it is a view of."""
    if not isinstance(leaf, Tensor):
        return leaf
    shown = leaf.numel() * leaf.element_size()
    return leaf.clone() if leaf.untyped_storage().nbytes() != shown else leaf
