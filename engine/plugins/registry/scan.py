"""Which distributions on ``sys.path`` offer plugins, read from their metadata files alone.

``importlib.metadata`` answers the same question, but importing it costs more than the whole scan:
listing must stay quick with a thousand distributions installed. Only ``entry_points.txt`` is read;
the few distributions that name one of our groups have their ``METADATA`` read as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

ALGORITHMS = "engine.algorithms"
EXTENSIONS = "engine.extensions"
EXPORTERS = "engine.exporters"
#: What a plugin of each group is called in messages.
WORDS = {ALGORITHMS: "algorithm", EXTENSIONS: "extension", EXPORTERS: "exporter"}
GROUPS = tuple(WORDS)
#: The distribution that this package belongs to.
OWN_DISTRIBUTION = "engine"

_INFO_FOLDERS = (".dist-info", ".egg-info")


class Entry(NamedTuple):
    """One line of an ``entry_points.txt``, and the distribution that it belongs to."""

    group: str
    name: str
    value: str
    distribution: str
    version: str


def normalised(name: str) -> str:
    """Return a distribution's name as it is compared: ``My_Plugin.x`` and ``my-plugin-x`` match."""
    return "-".join(filter(None, name.replace("_", "-").replace(".", "-").split("-"))).lower()


def scan(paths: Iterable[str]) -> list[Entry]:
    """Return every entry of our groups, in the order of ``paths`` (usually ``sys.path``).

    A distribution that is found twice counts once, as it is found first: the copy that an import
    would find.
    """
    seen: set[str] = set()
    entries: list[Entry] = []
    for path in dict.fromkeys(paths):
        entries += _scan_folder(path or os.curdir, seen)
    return entries


def _scan_folder(folder: str, seen: set[str]) -> Iterator[Entry]:
    try:
        with os.scandir(folder) as listing:
            names = sorted(item.name for item in listing if item.name.endswith(_INFO_FOLDERS))
    except NotADirectoryError:
        yield from _scan_archive(folder, seen)
        return
    except (OSError, ValueError):
        return  # sys.path may hold what does not exist, may not be read, or is no path at all
    if folder.endswith(".egg"):
        yield from _scan_archive(folder, seen)
    for name in names:
        if name[0] == "~":
            continue  # what pip leaves of a distribution that it could not remove
        key = normalised(name.rpartition(".")[0].partition("-")[0])
        if key in seen:
            continue
        seen.add(key)
        info = os.path.join(folder, name)
        try:
            with open(os.path.join(info, "entry_points.txt"), "rb") as file:
                content = file.read()
        except OSError:
            continue
        if b"engine." not in content:
            continue
        lines = list(_parse(content.decode("utf-8", "replace")))
        if lines:
            distribution, version = _identity(info, name)
            for group, entry, value in lines:
                yield Entry(group, entry, value, distribution, version)


def _parse(text: str) -> Iterator[tuple[str, str, str]]:
    group = ""
    for line in map(str.strip, text.splitlines()):
        if not line or line[0] in "#;":
            continue
        if line[0] == "[" and line[-1] == "]":
            group = line[1:-1].strip()
        elif group in GROUPS and "=" in line:
            name, _, value = line.partition("=")
            value = value.partition("[")[0]  # extras have no meaning here
            yield group, name.strip(), value.replace(" ", "")


def _identity(info: str, folder_name: str) -> tuple[str, str]:
    """Return name and version from the metadata; the folder's name has only a normalised form."""
    found: dict[str, str] = {}
    for file_name in ("METADATA", "PKG-INFO"):
        try:
            with open(os.path.join(info, file_name), encoding="utf-8", errors="replace") as file:
                for line in file:
                    if not line.strip():
                        break  # the headers end here, the description begins
                    key, _, value = line.partition(":")
                    found.setdefault(key.lower(), value.strip())
        except OSError:
            continue
        break
    name, _, version = folder_name.rpartition(".")[0].partition("-")
    return found.get("name") or name, found.get("version") or version.partition("-")[0]


def _scan_archive(path: str, seen: set[str]) -> Iterator[Entry]:
    """Yield the entries of a zip file or egg: rare, so the slow and general reader will do."""
    if not os.path.exists(path):
        return
    import importlib_metadata

    try:
        distributions = list(importlib_metadata.distributions(path=[path]))
    except Exception:
        return  # any file may stand on sys.path; what cannot be read offers no plugin
    for distribution in distributions:
        try:
            name, version = distribution.name, distribution.version
            points = [p for p in distribution.entry_points if p.group in GROUPS]
        except Exception:
            continue
        if name and normalised(name) not in seen:
            seen.add(normalised(name))
            for point in points:
                value = point.value.partition("[")[0].replace(" ", "")
                yield Entry(point.group, point.name, value, name, version or "")
