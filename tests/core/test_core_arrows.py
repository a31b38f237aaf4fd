"""The house: rooms in their order, no two files that import each other, a hall one can see over.

``import-linter`` states the order of the rooms as contracts (``pyproject.toml``, run by
``.ci/run``). What it does not look at is looked at here: imports for types, and circles of files.
"""

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "engine"


def modules():
    """Return, by dotted name, the syntax tree of every file of the engine."""
    trees = {}
    for file in ENGINE.rglob("*.py"):
        names = ["engine", *file.relative_to(ENGINE).with_suffix("").parts]
        trees[".".join(names).removesuffix(".__init__")] = ast.parse(file.read_text())
    return trees


def imported(tree, names):
    """Yield the modules that a file imports: when it is loaded, in a function, or for types."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("engine"):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in names else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)


def needs():
    """Return, by module, the modules that it imports; a package is its ``__init__``."""
    trees = modules()
    # What engine offers is loaded when it is first used: importing it imports nothing.
    return {m: set(imported(tree, trees)) - {m, "engine"} for m, tree in trees.items()}


def test_no_two_files_import_each_other_in_a_circle():
    graph, done, path = needs(), set(), []
    del graph["engine"]
    # The contract names types of every room, and no room's code.
    graph["engine.hookspecs"] = set()

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return
        path.append(module)
        for other in sorted(graph.get(module, ())):
            visit(other)
        path.pop()
        done.add(module)

    for module in sorted(graph):
        visit(module)
    assert len(done) > 200


def test_the_contract_imports_other_rooms_for_types_only():
    tree = modules()["engine.hookspecs"]
    loaded = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert not [
        name for name in loaded if name.startswith("engine") and name != "engine.api_version"
    ]


def rooms():
    """Return the rooms from the ground up, as the contract of import-linter has them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = (c for c in settings["contracts"] if c["type"] == "layers")
    levels = [level.replace("|", ":").split(":") for level in reversed(layers["layers"])]
    return [[room.strip() for room in level] for level in levels]


def test_arrows_go_down_the_list_of_rooms_for_types_too():
    level_of = {room: level for level, names in enumerate(rooms()) for room in names}
    upwards = []
    for module, others in needs().items():
        if module in ("engine", "engine.hookspecs"):
            continue
        own = level_of[".".join(module.split(".")[:2])]
        for other in others:
            if level_of[".".join(other.split(".")[:2])] > own:
                upwards.append(f"{module} -> {other}")
    assert not upwards


def test_every_file_and_folder_of_the_hall_is_a_room_of_the_contract():
    names = {
        f"engine.{entry.stem}"
        for entry in ENGINE.iterdir()
        if entry.name not in ("__pycache__", "__init__.py", "py.typed")
    }
    assert names == {room for level in rooms() for room in level}
    assert len(names) <= 24


def test_there_is_one_door_up():
    """A room that is named in ``import_module`` is imported where no contract sees it."""
    doors = {
        name
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module")
        for argument in node.args
        if isinstance(argument, ast.Constant) and str(argument.value).startswith("engine.")
    }
    assert doors == {"engine.attach.door"}


def test_a_pruner_and_a_quantizer_load_no_analysis_and_no_export():
    graph, reached = needs(), set()
    waiting = ["engine.pruning", "engine.pruning.schedule", "engine.quantization.quantizer"]
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += graph[module]
    assert "engine.attach.undisturbed" in reached
    above = ("engine.analysis", "engine.export", "engine.experiment")
    assert not [module for module in reached if module.startswith(above)]


def test_the_core_knows_no_plugin():
    for file in ENGINE.rglob("*.py"):
        assert "import plugins_builtin" not in file.read_text()
        assert "from plugins_builtin" not in file.read_text()
