"""One plugin: what its metadata and schema say of it, and its class once somebody asks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from engine.api_version import API_VERSION
from engine.errors import PluginError
from engine.plugins.registry import extending, schema_file
from engine.plugins.registry.scan import OWN_DISTRIBUTION, Entry, normalised
from engine.plugins.registry.schema_file import DRIVING

#: What becomes of a plugin: only ``ok`` is found by its bare name, ``clash`` by its qualified one.
STATUSES = ("ok", "broken", "incompatible", "clash", "blocked")


class Plugin:
    """An algorithm, extension or exporter that some installed distribution offers.

    Nothing is imported and no file read before an attribute needs it; ``load()`` alone imports the
    plugin's code. Attributes that come from a schema are empty when the schema cannot be read.

    Attributes:
        name: the entry point's name, such as ``"level"``.
        group: ``"engine.algorithms"``, ``"engine.extensions"`` or ``"engine.exporters"``.
        value: the entry point's value, such as ``"my_package:MyPruner"``.
        module: the part of ``value`` before the colon.
        attribute: the part of ``value`` after the colon.
        distribution: the distribution's name, as it is spelt in its metadata.
        version: the distribution's version.
    """

    def __init__(
        self,
        entry: Entry,
        verdict: Callable[[Plugin], tuple[str, str]],
        parent: Callable[[Plugin, str], Plugin | None],
    ) -> None:
        self.group, self.name, self.value, self.distribution, self.version = entry
        self.module, _, self.attribute = self.value.partition(":")
        self._decide = verdict
        self._parent = parent

    def __repr__(self) -> str:
        return f"<Plugin {self.qualified_name} {self.version}>"

    @property
    def qualified_name(self) -> str:
        """``"distribution:name"``, which means this plugin whatever else is installed."""
        return f"{self.distribution}:{self.name}"

    @property
    def origin(self) -> str:
        """``"distribution version"``, for messages."""
        return f"{self.distribution} {self.version}".rstrip()

    @cached_property
    def _verdict(self) -> tuple[str, str]:
        return self._decide(self)

    @property
    def status(self) -> str:
        """One of ``ok``, ``broken``, ``incompatible``, ``clash``, ``blocked``."""
        return self._verdict[0]

    @property
    def reason(self) -> str:
        """Why the status is not ``ok``; else empty."""
        return self._verdict[1]

    @cached_property
    def fault(self) -> schema_file.FaultError | None:
        """What is wrong with the plugin by itself, whatever else is installed."""
        if not self.module or not all(part.isidentifier() for part in self.attribute.split(".")):
            reason = f'the entry point "{self.value}" is not of the form module:Class'
            return schema_file.FaultError("broken", reason)
        try:
            schema_file.judge(self._read, self.group)
        except schema_file.FaultError as fault:
            return fault
        return None

    @cached_property
    def _read(self) -> dict[str, Any]:
        own = schema_file.read(self.module)
        name = schema_file.extended(own)
        return own if not name else extending.extended(own, self._lineage(name))

    def _lineage(self, name: str) -> list[dict[str, Any]]:
        """Return the schemas that this one builds upon, as files have them, the nearest first.

        FaultError where one is missing, or they go round in a circle.
        """
        schemas: list[dict[str, Any]] = []
        known: list[Plugin] = [self]
        while name:
            parent = self._parent(known[-1], name)
            if parent is None:
                raise schema_file.FaultError(
                    "broken", f'x-engine.extends names "{name}", which is not installed'
                )
            if parent in known:
                raise schema_file.FaultError(
                    "broken", f'x-engine.extends "{name}" goes in a circle'
                )
            known.append(parent)
            schemas.append(schema_file.read(parent.module))
            name = schema_file.extended(schemas[-1])
        return schemas

    @property
    def schema(self) -> dict[str, Any]:
        """The parsed ``schema.json``. PluginError when there is none that can be used."""
        if self.fault is not None:
            raise self.unusable()
        return self._read

    @cached_property
    def _facts(self) -> dict[str, Any]:
        try:
            facts = self._read.get("x-engine")
        except schema_file.FaultError:
            return {}
        return facts if isinstance(facts, dict) else {}

    def _text(self, key: str) -> str:
        value = self._facts.get(key, "")
        return value if isinstance(value, str) else ""

    def _texts(self, key: str) -> tuple[str, ...]:
        value = self._facts.get(key, ())
        if not isinstance(value, list):
            return ()
        return tuple(item for item in value if isinstance(item, str))

    @property
    def kind(self) -> str:
        """``"pruning"`` or ``"quantization"``; an extension's may be ``"any"``; ``"exporter"``."""
        return self._text("kind")

    @property
    def role(self) -> str:
        """``"provider"``, ``"schedule"``, ``"search"``, ``"watcher"``, ``"constraint"``, ..."""
        return self._text("role") or schema_file.default_role(self.group)

    @property
    def label(self) -> str:
        """Kind and role in one word, for tables: pruner, quantizer, schedule, watcher, ..."""
        if not self._facts:
            return ""
        if self.role != "provider":
            return self.role
        return {"pruning": "pruner", "quantization": "quantizer"}.get(self.kind, self.kind)

    @property
    def summary(self) -> str:
        """What the plugin does, in one short line."""
        return self._text("summary")

    @property
    def api(self) -> str:
        """The engine API that the plugin is written for, such as ``"1.0"``."""
        return self._text("api")

    @property
    def paper(self) -> dict[str, Any]:
        """``title``, ``authors``, ``year`` and ``arxiv`` or ``url``; empty when there is none."""
        value = self._facts.get("paper")
        return value if isinstance(value, dict) else {}

    @property
    def aliases(self) -> tuple[str, ...]:
        """Other names that find this plugin, such as those of older toolkits."""
        return self._texts("aliases")

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Optional abilities that the plugin declares."""
        return self._texts("capabilities")

    @property
    def endings(self) -> tuple[str, ...]:
        """How names of an exporter's files end, such as ``".onnx"``; ``"/"`` is a folder."""
        return self._texts("endings")

    @property
    def expresses(self) -> dict[str, Any]:
        """What an exporter's format can hold: kinds, layers, schemes, bits, ..."""
        value = self._facts.get("expresses")
        return value if isinstance(value, dict) else {}

    @property
    def needs(self) -> dict[str, str]:
        """Modules that an exporter imports, each with what pip installs it by."""
        value = self._facts.get("needs")
        return value if isinstance(value, dict) else {}

    @property
    def reader(self) -> dict[str, str]:
        """Modules that read an exporter's files back, each with what pip installs it by."""
        value = self._facts.get("reader")
        return value if isinstance(value, dict) else {}

    @property
    def base_argument(self) -> str | None:
        """The argument by which a schedule or search names the algorithm inside; else None."""
        return self._text("base_argument") or None if self.role in DRIVING else None

    @property
    def runtime_arguments(self) -> dict[str, str]:
        """Arguments that only Python can give (an optimizer, say), with their descriptions."""
        value = self._facts.get("runtime_arguments")
        return value if isinstance(value, dict) else {}

    @property
    def calibration(self) -> str:
        """Whether the algorithm needs batches: ``"required"``, ``"optional"``, or ``""``."""
        return self._text("calibration")

    @property
    def extends(self) -> str:
        """The plugin whose schema this one's builds upon; ``""`` for none."""
        return self._text("extends")

    @property
    def finds_sparsity(self) -> bool:
        """Whether a pruner's sparsity is an outcome, so that nobody can ask it for one."""
        return self._text("sparsity") == "outcome"

    def unusable(self) -> PluginError:
        """Return the error for using this plugin although its status forbids it."""
        message = f"{self.name} ({self.origin}) is {self.status}: {self.reason}\n  {self._fix()}"
        return PluginError(message, plugin=self.name, distribution=self.origin)

    def _fix(self) -> str:
        if self.status == "blocked":
            return f"change the environment variable ENGINE_BLOCK to use {self.name}"
        if self.comes_from(OWN_DISTRIBUTION):
            return f"reinstall {self.distribution}"
        fix = f"reinstall or upgrade {self.distribution}"
        if self.status == "incompatible":
            newer = tuple(map(int, self.api.split("."))) > API_VERSION
            fix = f"upgrade {OWN_DISTRIBUTION if newer else self.distribution}"
        return f'{fix}, or set ENGINE_BLOCK="{self.distribution}"'

    def load(self) -> type:
        """Import the plugin and return its class.

        Raises:
            PluginError: the plugin is broken, incompatible or blocked, its import fails, or what
                it names is not a class. The original exception is the cause.
        """
        if self.status not in ("ok", "clash"):
            raise self.unusable()
        import importlib

        try:
            found: Any = importlib.import_module(self.module)
            for part in self.attribute.split("."):
                found = getattr(found, part)
        except (Exception, SystemExit) as error:
            first = (str(error).strip().splitlines() or [""])[0]
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            cause = f"{type(error).__name__}: {first}".rstrip(": ")
            raise self._not_loaded(cause, missing) from error
        if not isinstance(found, type):
            raise self._not_loaded(f"{self.value} is {type(found).__name__}, not a class")
        return found

    def _not_loaded(self, cause: str, missing: str | None = None) -> PluginError:
        message = (
            f"{self.name} ({self.origin}) cannot be imported\n"
            f"  {cause}\n"
            f'  see the traceback with: python -c "import {self.module}"'
        )
        own = self.module.partition(".")[0]
        if missing is not None and missing.partition(".")[0] != own:
            message += (
                f"\n  install what it needs: {missing}, or {self.distribution} again with its "
                "dependencies"
            )
        return PluginError(message, plugin=self.name, distribution=self.origin)

    def comes_from(self, distribution: str) -> bool:
        """Whether ``distribution``, in any spelling, is where this plugin comes from."""
        return normalised(self.distribution) == normalised(distribution)
