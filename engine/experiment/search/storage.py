"""Where a study is kept: in a SQLite file of its own, or in a database that runners share."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.errors import EngineError

#: What to install for a driver that is missing, where its module is called otherwise.
_DRIVERS = {
    "psycopg": "'psycopg[binary]'",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
}
#: Seconds between attempts to use a storage whose tables another runner is making.
_PAUSES = (0.1, 0.3, 1.0)


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
    except (sqlite3.Error, SQLAlchemyError, RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise EngineError(f"{path} cannot be used as a study: {first}") from error


def read_only_storage(path: Path) -> Any:
    """Return a copy in memory of the storage in a SQLite file that may not be written.

    Raises:
        EngineError: it cannot be read.
    """
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import StaticPool

    # SQLite writes beside a file with a log ahead even to read it, unless it is told that nobody
    # changes it; if there is a log, somebody does, or was killed, and what it needs is there.
    how = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "immutable=1"
    memory = sqlite3.connect(":memory:", check_same_thread=False)
    try:
        address = f"{path.resolve().as_uri()}?{how}"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as file:
            file.backup(memory)
        kwargs = {"creator": lambda: memory, "poolclass": StaticPool}
        return RDBStorage("sqlite://", engine_kwargs=kwargs)
    except (sqlite3.Error, SQLAlchemyError, RuntimeError, ValueError) as error:
        raise EngineError(f"{path} cannot be read: {_first_line(error)}") from error


def _without_fsync(connection: Any, record: object) -> None:
    connection.execute("PRAGMA synchronous=NORMAL")


def shared_storage(address: str) -> Any:
    """Return the storage at an address of Optuna's. EngineError when it cannot be used."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        for pause in _PAUSES:
            try:
                return _database(address)
            except SQLAlchemyError as error:
                if not _is_being_made(error):
                    raise
            time.sleep(pause)
        return _database(address)
    except (SQLAlchemyError, ImportError, RuntimeError, ValueError) as error:
        # The address may hold a password: it is not repeated.
        raise EngineError(
            f"--storage cannot be used: {_first_line(error)}\n  {_remedy(error)}"
        ) from error


def _database(address: str) -> Any:
    from optuna.storages import RDBStorage, get_storage
    from sqlalchemy import event

    # A trial takes hours, and the server may have been started anew since the last question.
    kwargs: dict[str, Any] = {"pool_pre_ping": True}
    if address.startswith("sqlite"):
        kwargs["connect_args"] = {"timeout": 60}
    storage = RDBStorage(address, engine_kwargs=kwargs)
    if storage.engine.dialect.name == "sqlite":
        # It locks no rows, so that two runners could both take a trial that waits.
        event.listen(storage.engine, "begin", _lock_all)
    return get_storage(storage)


def _lock_all(connection: Any) -> None:
    driver = connection.connection.driver_connection
    driver.isolation_level = None  # else Python begins by itself, at the first change
    driver.execute("BEGIN IMMEDIATE")


def _is_being_made(error: Exception) -> bool:
    """Return whether another runner is just making the tables."""
    from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

    # SQLite and MySQL say in one class that there is a table and that there is no server.
    there = isinstance(error, OperationalError) and "already exists" in str(error.orig)
    return there or isinstance(error, (IntegrityError, ProgrammingError))


def _remedy(error: Exception) -> str:
    """Return what to do about a storage that cannot be used."""
    from sqlalchemy.exc import OperationalError

    if driver := _missing_driver(error):
        return f"pip install {_DRIVERS.get(driver, driver)}"
    if isinstance(error, OperationalError):
        return "it needs a server that answers and that has this database and user"
    return "it is an address such as postgresql://user@host/database"


def _missing_driver(error: BaseException) -> str | None:
    """Return the module that Optuna could not import for an address."""
    cause = error.__cause__ if isinstance(error, ImportError) else None
    return cause.name if isinstance(cause, ImportError) else None


def _first_line(error: BaseException) -> str:
    """Return what an error of a database says, without the name of the driver's class."""
    if driver := _missing_driver(error):
        return f"its driver {driver} is not installed"
    text = str(getattr(error, "orig", None) or error).strip()
    return text.splitlines()[0] if text else type(error).__name__


@contextlib.contextmanager
def errors_told(storage: str) -> Iterator[None]:
    """Turn an error of the storage within, such as a full disk, into an EngineError.

    Args:
        storage: what the storage is called in the message.
    """
    from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except UpdateFinishedTrialError as error:
        raise EngineError(
            f"a trial that runs here was ended by somebody else in {storage}\n"
            "  engine run goes on from here"
        ) from error
    except (StorageInternalError, SQLAlchemyError) as error:
        raise EngineError(
            f"{storage} cannot be used: {_first_line(error.__cause__ or error)}\n"
            "  engine run goes on from here when that is mended"
        ) from error
