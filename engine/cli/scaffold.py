"""Renders ``plugin_template/`` into a package, and brings an older package up to date.

copier renders; its own ``update`` needs the template in a git repository with tags, which an
installed engine is not. So a package keeps a record of what was rendered, the answers and a digest
of each file, and an update replaces what its author has not touched.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.api_version import API_VERSION
from engine.errors import EngineError
from engine.files import write_whole

#: Beside the packages, in a checkout and where a wheel has put them.
TEMPLATE = Path(__file__).resolve().parents[2] / "plugin_template"
RECORD = ".engine-template.json"
_FORMAT = 1


def create(folder: Path, name: str, kind: str, version: str) -> Path:
    """Render a new package into ``folder`` and return where it is; nothing is left half done.

    Args:
        folder: made if it does not exist.
        name: the plugin's name, checked already.
        kind: "pruning", "quantization", "schedule", "extension" or "exporter".
        version: the engine's version, which the package will require.

    Raises:
        EngineError: there is a file or folder of its name already, or copier is not installed.
    """
    answers = {
        "name": name,
        "kind": kind,
        "engine_version": version,
        "api": ".".join(map(str, API_VERSION)),
    }
    target = folder / package_folder(name)
    if target.exists():
        raise EngineError(
            f"{target} is there already; nothing was changed\n"
            "  choose another name or --output, or bring it up to date with --update"
        )
    with _rendered(answers) as package:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{target.name}.") as beside:
            whole = Path(shutil.copytree(package, Path(beside) / target.name))
            whole.rename(target)
    return target


def update(package: Path) -> dict[str, list[str]]:
    """Bring a package up to date with the template; return what was done to which files.

    The keys are "replaced", "added" and "kept": a file that both its author and the template have
    changed is kept, and the template's is written beside it with ``.new`` at the end. A file that
    the author has deleted stays deleted.

    Raises:
        EngineError: the package has no record of the template, or a damaged one.
    """
    try:
        record = json.loads((package / RECORD).read_text(encoding="utf-8"))
        answers, digests = dict(record["answers"]), dict(record["files"])
    except FileNotFoundError as error:
        raise EngineError(
            f"{package / RECORD} is not there: only what engine new-algorithm made can be updated"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{package / RECORD} is damaged: {error}") from error
    done: dict[str, list[str]] = {"replaced": [], "added": [], "kept": []}
    with _rendered(answers) as fresh:
        for path in _files(fresh):
            place, new = path.relative_to(fresh).as_posix(), path.read_bytes()
            own = package / place
            if place == RECORD or digests.get(place) == _digest(new):
                continue  # the template says what it has always said
            if not own.exists():
                if place not in digests:
                    _write(own, new)
                    done["added"].append(place)
            elif _digest(own.read_bytes()) == digests.get(place):
                _write(own, new)
                done["replaced"].append(place)
            elif own.read_bytes() != new:
                _write(own.with_name(f"{own.name}.new"), new)
                done["kept"].append(place)
        _write(package / RECORD, (fresh / RECORD).read_bytes())
    return done


def package_folder(name: str) -> str:
    """Return the name of the folder, and of the distribution, of a plugin."""
    return f"engine-{name.replace('_', '-')}"


@contextmanager
def _rendered(answers: Mapping[str, Any]) -> Iterator[Path]:
    """Within, the template is rendered into the folder that is given, record included."""
    try:
        from copier import run_copy
        from copier.errors import CopierError
    except ImportError as error:
        raise EngineError(
            f"rendering a package needs copier ({error})\n  pip install 'engine[template]'"
        ) from error
    if not (TEMPLATE / "copier.yml").is_file():
        raise EngineError(f"the template {TEMPLATE} is not there; reinstall engine")
    with tempfile.TemporaryDirectory(prefix="engine-template.") as scratch:
        package = Path(scratch) / "package"
        try:
            run_copy(str(TEMPLATE), package, data=dict(answers), defaults=True, quiet=True)
        except (CopierError, ValueError) as error:
            raise EngineError(f"the template cannot be rendered: {error}") from error
        files = {
            p.relative_to(package).as_posix(): _digest(p.read_bytes()) for p in _files(package)
        }
        record = {"format": _FORMAT, "answers": dict(answers), "files": files}
        (package / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        yield package


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda temporary: temporary.write_bytes(content))
