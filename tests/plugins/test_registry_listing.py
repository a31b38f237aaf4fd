import json
import os
import subprocess
import sys

import pytest
from built_in import ALGORITHMS
from fakes import SCHEMA, row, with_facts

from engine.plugins import registry


def test_all_built_in_algorithms_are_ok_and_sorted(site):
    assert [(p.name, p.status) for p in registry.algorithms()] == [(n, "ok") for n in ALGORITHMS]


def test_summaries_fit_the_table(site):
    assert all(0 < len(p.summary) <= 29 for p in registry.algorithms())


def test_papers_are_complete(site):
    for plugin in registry.algorithms():
        if plugin.name == "linear":  # nobody's invention
            continue
        assert {"title", "authors", "year"} <= plugin.paper.keys()
        assert plugin.paper.keys() & {"arxiv", "url"}


def test_facts_come_from_metadata_and_schema(site):
    site.plugin("lut", "LUT-Plugin", "0.3.1", schema=with_facts(capabilities=["soft"]))
    (plugin,) = [p for p in registry.algorithms() if p.name == "lut"]
    assert (plugin.distribution, plugin.version) == ("LUT-Plugin", "0.3.1")
    assert plugin.qualified_name == "LUT-Plugin:lut"
    assert (plugin.module, plugin.attribute) == ("LUT_Plugin", "Pruner")
    assert (plugin.kind, plugin.role, plugin.label) == ("pruning", "provider", "pruner")
    assert (plugin.summary, plugin.api) == ("Made for a test", "1.0")
    assert (plugin.paper, plugin.aliases, plugin.capabilities) == ({}, (), ("soft",))
    assert plugin.schema["title"] == "A test's pruner"


def test_listing_does_not_import_the_plugin_nor_the_packages_above_it(site):
    site.distribution("outer", algorithms=[("x", "outer.inner:Pruner")])
    site.package("outer", code="raise RuntimeError('imported')", schema=None)
    site.package("outer.inner", code="raise RuntimeError('imported')")
    assert row("x") == ("ok", "")
    assert "outer" not in sys.modules


@pytest.mark.parametrize(
    ("schema", "status", "reason"),
    [
        (None, "broken", "no schema.json beside lut_plugin"),
        (
            '{"a": 1,}',
            "broken",
            "schema.json of lut_plugin is not JSON: Expecting property name enclosed in double "
            "quotes, line 1, column 9",
        ),
        ("[]", "broken", "schema.json of lut_plugin is not a JSON object"),
        ("{}", "broken", 'schema.json has no "x-engine" section'),
        (
            with_facts(api=None, kind=None),
            "broken",
            "schema.json lacks x-engine.kind, x-engine.api",
        ),
        (with_facts(summary=3), "broken", "x-engine.summary in schema.json is not text"),
        (
            with_facts(kind="prune"),
            "broken",
            'x-engine.kind is "prune"; it is one of pruning, quantization',
        ),
        (
            with_facts(role="boss"),
            "broken",
            'x-engine.role is "boss"; it is one of provider, schedule, search, blocks',
        ),
        (
            with_facts(role="schedule"),
            "broken",
            "x-engine.base_argument of a schedule names none of its arguments",
        ),
        (with_facts(api="one"), "broken", 'x-engine.api is "one"; it looks like "1.0"'),
        (
            with_facts(api="2.0"),
            "incompatible",
            "written for engine API 2.0, this engine has 1.1",
        ),
        (
            with_facts(api="1.2"),
            "incompatible",
            "written for engine API 1.2, this engine has 1.1",
        ),
        (
            {**SCHEMA, "properties": []},
            "broken",
            '"properties" in schema.json is not a JSON object',
        ),
    ],
)
def test_a_plugin_that_cannot_be_used_says_why_and_harms_no_other(site, schema, status, reason):
    site.plugin("lut", "lut-plugin", schema=schema)
    if reason.startswith("schema.json of lut_plugin is not JSON") and sys.version_info >= (3, 13):
        reason = row("lut")[1]  # the parser's own words changed
    assert row("lut") == (status, reason)
    assert row("level") == ("ok", "")
    assert len(registry.algorithms()) == len(ALGORITHMS) + 1


def test_a_schema_that_is_not_utf8_is_broken(site):
    site.plugin("lut", "lut-plugin")
    (site.folder / "lut_plugin" / "schema.json").write_bytes(b'{"\xff": 1}')
    assert row("lut") == ("broken", "schema.json of lut_plugin is not UTF-8")


def test_a_module_that_does_not_exist_is_broken(site):
    site.distribution("gone", algorithms=[("x", "gone.deep.er:Pruner")])
    assert row("x") == ("broken", "module gone.deep.er is not found")


@pytest.mark.parametrize("value", ["lut_plugin", "lut_plugin:", ":Pruner", "lut_plugin:not-a-name"])
def test_an_entry_point_of_the_wrong_form_is_broken(site, value):
    site.distribution("lut-plugin", algorithms=[("x", value)])
    assert row("x") == ("broken", f'the entry point "{value}" is not of the form module:Class')


def test_one_name_twice_in_one_distribution_is_broken(site):
    site.distribution("twin", algorithms=[("x", "twin.a:Pruner"), ("x", "twin.b:Pruner")])
    assert row("x") == ("broken", "twin offers it twice: twin.a:Pruner, twin.b:Pruner")


def test_a_distribution_found_twice_counts_once_and_the_first_wins(site, monkeypatch, tmp_path):
    site.plugin("x", "one", "2.0")
    later = tmp_path / "later"
    site.distribution("One", "1.0", folder=later, algorithms=[("x", "one:Pruner")])
    monkeypatch.setattr(sys, "path", [*sys.path, str(later)])
    assert row("x") == ("ok", "")
    assert registry.find("x").version == "2.0"


def test_an_egg_info_in_the_working_folder_counts_once(site, monkeypatch, tmp_path):
    site.plugin("x", "one")
    work = tmp_path / "work"
    site.distribution("one", folder=work, suffix="egg-info", algorithms=[("x", "one:Pruner")])
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    registry.refresh()
    assert row("x") == ("ok", "")


def test_an_editable_install_is_found_where_its_code_is(site, tmp_path):
    source = tmp_path / "checkout" / "src"
    site.package("edited", folder=source)
    site.distribution("edited", "0.1", algorithms=[("x", "edited:Pruner")])
    sys.path.append(str(source))  # as the .pth file of an editable install does
    try:
        registry.refresh()
        assert row("x") == ("ok", "")
        assert registry.find("x").load().__module__ == "edited"
    finally:
        sys.path.remove(str(source))


def test_a_zip_on_the_path_is_read(site, monkeypatch, tmp_path):
    import zipfile

    archive = tmp_path / "plugins.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("zipped/__init__.py", "class Pruner: pass\n")
        file.writestr("zipped/schema.json", json.dumps(SCHEMA))
        file.writestr("zipped-1.5.dist-info/METADATA", "Name: zipped\nVersion: 1.5\n")
        file.writestr(
            "zipped-1.5.dist-info/entry_points.txt", "[engine.algorithms]\nx = zipped:Pruner\n"
        )
    monkeypatch.syspath_prepend(str(archive))
    plugin = registry.find("x")
    assert (plugin.status, plugin.origin) == ("ok", "zipped 1.5")
    assert plugin.load().__name__ == "Pruner"


def test_odd_things_on_the_path_are_passed_over(site, monkeypatch, tmp_path):
    (tmp_path / "file.txt").write_text("not an archive")
    (site.folder / "old.egg-info").write_text("a file, as distutils wrote it")
    (site.folder / "~ne-1.0.dist-info").mkdir()
    bad = site.folder / "bytes-1.0.dist-info"
    bad.mkdir()
    (bad / "entry_points.txt").write_bytes(b"[engine.algorithms]\n\xff = \xfe:\xfd\nnonsense\n")
    extra = [str(tmp_path / "file.txt"), str(tmp_path / "missing"), "\0"]
    monkeypatch.setattr(sys, "path", [*sys.path, *extra])
    assert {p.status for p in registry.algorithms() if p.distribution == "engine"} == {"ok"}


def test_extensions_are_a_group_of_their_own(site):
    facts = with_facts(kind="any", role="watcher")
    site.plugin("clock", "bars", group="extensions", schema=facts)
    (plugin,) = [p for p in registry.extensions() if p.distribution == "bars"]
    assert (plugin.name, plugin.status, plugin.label) == ("clock", "ok", "watcher")
    assert registry.find("clock", registry.EXTENSIONS) is plugin


def test_installing_while_running_needs_a_refresh(site):
    names = {p.name for p in registry.algorithms()}
    site.plugin("new", "brand-new")  # refreshes
    assert {p.name for p in registry.algorithms()} - names == {"new"}


def test_listing_imports_no_heavy_library(site):
    code = (
        "import sys\n"
        "from engine.plugins import registry\n"
        "assert all(p.status == 'ok' for p in registry.algorithms())\n"
        "registry.find('AGP_Pruner')\n"
        "bad = {'torch', 'pluggy', 'jsonschema', 'yaml', 'importlib_metadata'}\n"
        "print(sorted(bad & set(sys.modules)))\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ENGINE_")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout == "[]\n"
