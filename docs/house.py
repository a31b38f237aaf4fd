"""The picture of the rooms of ``engine/``: who imports whom, counted in the code as it is now.

A dot in a room's row and another's column: files of the first import files of the second. Rooms
stand in the order of the contract in ``pyproject.toml``, so that all dots lie on one side.
"""

import tomllib
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]


def rooms():
    """Return the levels of the contract from the top: lists of modules."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(c["layers"] for c in settings["contracts"] if c["type"] == "layers")
    return [[name.strip() for name in level.replace("|", ":").split(":")] for level in layers]


def imports():
    """Return the pairs of levels of which files of the first import files of the second."""
    level_of = {name: number for number, names in enumerate(rooms()) for name in names}
    graph = grimp.build_graph("engine", exclude_type_checking_imports=True)
    return {
        tuple(level_of[".".join(module.split(".")[:2])] for module in (importer, imported))
        for importer in graph.modules - {"engine"}
        for imported in graph.find_modules_directly_imported_by(importer) - {"engine"}
    }


def house(head, style, ink, colour):
    """Return the picture as SVG."""
    levels = rooms()
    row, left, top = 28, 120, 90
    size = row * len(levels)
    parts = [
        head.format(left + size + 30, top + size + 10, "Rooms of the engine, who imports whom")
    ]
    parts.append(f"<g {style}>")
    for number, names in enumerate(levels):
        y, x = top + row * number, left + row * number
        name = names[0].removeprefix("engine.")
        if len(names) > 1:
            name = "contract" if "engine.errors" in names else "doors"
        parts.append(
            f'<text x="10" y="{y + 19}">{name}</text>'
            f'<path d="M{left} {y + row / 2} H{left + size} M{x + row / 2} {top} v{size}" '
            f'stroke="{ink}" stroke-opacity="0.15"/>'
            f'<rect x="{x + 4}" y="{y + 4}" width="{row - 8}" height="{row - 8}" rx="3" '
            f'fill="{ink}" fill-opacity="0.5"/>'
            f'<text transform="translate({x + 18} {top - 8}) rotate(-55)">{name}</text>'
        )
    for importer, imported in sorted(imports()):
        if importer != imported:
            x, y = left + row * (imported + 0.5), top + row * (importer + 0.5)
            parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="6" fill="{colour}"/>')
    return "\n".join([*parts, "</g></svg>"]) + "\n"
