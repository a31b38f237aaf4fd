"""Where a study is kept: in a SQLite file of its own, or in a database that runners share."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.errors import EngineError


def file_storage(path: Path) -> Any:
    """Return the storage in a SQLite file, made if need be. EngineError when it is no such file."""
    from optuna.storages import RDBStorage
    from sqlalchemy import event
    from sqlalchemy.exc import SQLAlchemyError

    try:
        # With a log written ahead, a commit needs no fsync to survive the death of the process.
        with contextlib.closing(sqlite3.connect(path, timeout=60)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")

        def connect() -> sqlite3.Connection:
            return sqlite3.connect(path, timeout=60, check_same_thread=False)

        # The address says only that it is a file: a path may hold what has a meaning in a URL, and
        # Optuna takes braces for a template.
        storage = RDBStorage("sqlite:///study.db", engine_kwargs={"creator": connect})
        event.listen(storage.engine, "connect", _without_fsync)
        storage.engine.dispose()
        return storage
    except (sqlite3.Error, SQLAlchemyError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise EngineError(f"{path} cannot be used as a study: {first}") from error


def _without_fsync(connection: Any, record: object) -> None:
    connection.execute("PRAGMA synchronous=NORMAL")


def shared_storage(address: str) -> Any:
    """Return the storage at an address of Optuna's. EngineError when it cannot be used."""
    from optuna.storages import get_storage
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return get_storage(address)
    except (SQLAlchemyError, ImportError, RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        # The address may hold a password: it is not repeated.
        raise EngineError(
            f"--storage cannot be used: {first}\n"
            "  it is an address such as postgresql://user@host/database, and its driver must be "
            "installed"
        ) from error


@contextlib.contextmanager
def errors_told(path: Path) -> Iterator[None]:
    """Turn an error of the storage within, such as a full disk, into an EngineError."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        cause = error.__cause__ or error
        raise EngineError(
            f"{path} cannot be written: {str(cause).splitlines()[0]}\n"
            "  engine run goes on from here when that is mended"
        ) from error
