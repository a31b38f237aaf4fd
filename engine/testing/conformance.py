"""The checks as pytest tests: a plugin's test file inherits them in three lines.

    from engine.testing import PrunerConformance

    class TestMyPruner(PrunerConformance):
        plugin = "my_pruner"

Each check is a test named after it. A check that is skipped skips its test; an expected failure,
which the plugin's schema declares, is an xfail, and one that passes fails the test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from engine.errors import PluginError
from engine.testing.outcome import (
    BAD,
    BLOCKS,
    CHECKS,
    EXPECTED,
    EXPORTER,
    EXTENSION_ROLES,
    PRUNER,
    QUANTIZER,
    SCHEDULE,
    SEARCH,
    SKIPPED,
    Check,
    Result,
    run,
)
from engine.testing.subject import Subject
from engine.testing.suite import find


def report(result: Result) -> None:
    """Pass, skip, xfail or fail the running test by a result."""
    import pytest

    if result.outcome == SKIPPED:
        pytest.skip(result.reason)
    if result.outcome == EXPECTED:
        pytest.xfail(result.reason)
    if result.outcome in BAD:
        pytest.fail(f"{result.claim}\n  {result.reason}", pytrace=False)


def _test(each: Check) -> Callable[[Conformance], None]:
    def test(self: Conformance) -> None:
        subject = _subject(type(self))
        if subject.role and subject.role not in each.roles:
            report(Result(each.name, each.claim, SKIPPED, f"it is a {subject.role}", 0.0))
        report(run(each, subject))

    test.__name__ = f"test_{each.name}"
    test.__doc__ = each.claim
    return test


def _subject(cls: type[Conformance]) -> Subject:
    import pytest

    if not cls.plugin:
        pytest.fail(f'{cls.__name__} names no plugin: plugin = "my_plugin"', pytrace=False)
    try:
        subject = Subject(find(cls.plugin))
    except PluginError as error:
        pytest.fail(str(error), pytrace=False)
    if subject.role and subject.role not in cls.roles:
        pytest.fail(
            f"{cls.plugin} is a {subject.role}, {cls.__mro__[1].__name__} is for: "
            f"{', '.join(cls.roles)}",
            pytrace=False,
        )
    return subject


class Conformance:
    """Base of the test classes below.

    Attributes:
        plugin: the plugin's name, as ``engine list-algorithms`` shows it.
        roles: the roles of plugins that the class is for.
    """

    plugin: ClassVar[str] = ""
    roles: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "roles" in vars(cls):
            for each in CHECKS:
                if each.roles.intersection(cls.roles):
                    setattr(cls, f"test_{each.name}", _test(each))


class PrunerConformance(Conformance):
    """What every pruning algorithm must pass."""

    roles = (PRUNER,)


class QuantizerConformance(Conformance):
    """What every quantization algorithm must pass."""

    roles = (QUANTIZER,)


class ScheduleConformance(Conformance):
    """What everything that wraps a pruner must pass."""

    roles = (SCHEDULE,)


class SearchConformance(Conformance):
    """What everything must pass that searches for each layer's sparsity."""

    roles = (SEARCH,)


class BlocksConformance(Conformance):
    """What everything must pass that removes whole blocks."""

    roles = (BLOCKS,)


class ExporterConformance(Conformance):
    """What everything must pass that writes models in a format."""

    roles = (EXPORTER,)


class ExtensionConformance(Conformance):
    """What everything that watches or constrains an algorithm must pass."""

    roles = EXTENSION_ROLES
