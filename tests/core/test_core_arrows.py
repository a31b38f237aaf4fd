"""Imports go one way: no module needs, when it is imported, one that needs it."""

import ast
from pathlib import Path

ENGINE = Path(__file__).resolve().parents[2] / "engine"


def imported(tree, modules):
    """Yield the modules of the engine that are imported when a file is: not under TYPE_CHECKING."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module in modules:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from names & modules.keys()
            if names - modules.keys():
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)


def needs():
    """Return, by module, the modules that it imports; a package is its ``__init__``."""
    trees = {}
    for file in ENGINE.rglob("*.py"):
        names = ["engine", *file.relative_to(ENGINE).with_suffix("").parts]
        trees[".".join(names).removesuffix(".__init__")] = ast.parse(file.read_text())
    # What engine offers is loaded when it is first used: importing it imports nothing.
    return {m: set(imported(tree, trees)) - {m, "engine"} for m, tree in trees.items()}


def test_no_module_needs_one_that_needs_it():
    graph, done, path = needs(), set(), []

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


def test_a_pruner_and_a_quantizer_load_no_analysis():
    graph, reached = needs(), set()
    waiting = [
        "engine.pruning.pruner",
        "engine.pruning",
        "engine.pruning.schedule",
        "engine.quantization.quantizer",
    ]
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += graph[module]
    assert "engine.attach.undisturbed" in reached
    assert not [module for module in reached if module.startswith("engine.analysis")]


def test_the_core_knows_no_plugin():
    for file in ENGINE.rglob("*.py"):
        assert "import plugins_builtin" not in file.read_text()
        assert "from plugins_builtin" not in file.read_text()
