"""Draw docs/architecture.svg: the rooms of the house on their floors, and which imports which.

    python docs/draw_architecture.py

A room stands above everything that it imports. Arrows that follow from others are left out.
"""

import ast
from pathlib import Path

from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).resolve().parents[1]
ABOUT = {
    "cli": "registers the commands",
    "commands": "click, options, output",
    "api": "every public function",
    "studies": "demo, sweep, explain, tables",
    "train": "stage two",
    "precompute": "stage one",
    "source_outputs": "a batch's logits: stored or live",
    "stores": "which store belongs to what",
    "data": "datasets, plan, renderers, loader",
    "runtime": "device, ranks, memory, paths",
    "sskt": "the method: sources, students, losses",
    "cache": "Zarr stores of logits",
}
NAMES = {"cli": "cli.py", "api": "pipeline/api.py", "sskt": "sskt", "cache": "cache"}
STAGES = {"precompute": "#dbe9f6", "train": "#fde3cf", "source_outputs": "#fde3cf", "cache": "#e3efd9"}
COLUMN = {"train": 0.5}  # of a room that stands beside the middle, above what only it uses
WIDTH, HEIGHT, GAP = 3.4, 0.6, 0.98  # inches


def room_of(module: str) -> str | None:
    """The room that a module belongs to: a folder of pipeline/, or a whole package."""
    package, _, rest = module.partition(".")
    if package == "pipeline":
        return rest.partition(".")[0] or None
    return package if package in ("cli", "sskt", "cache") else None


def imports() -> dict[str, set[str]]:
    """Each room and the rooms that its files import."""
    found: dict[str, set[str]] = {}
    packages = (path for top in ("pipeline", "sskt", "cache") for path in (ROOT / top).rglob("*.py"))
    for path in [ROOT / "cli.py", *packages]:
        room = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
        if room is None:
            continue
        edges = found.setdefault(room, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module, *(f"{node.module}.{name.name}" for name in node.names)]
                edges |= {r for r in map(room_of, modules) if r is not None and r != room and r in ABOUT}
    return found


def floors(edges: dict[str, set[str]]) -> dict[str, int]:
    """The floor of each room: one above the highest of those that it imports."""
    height: dict[str, int] = {}

    def floor(room: str) -> int:
        if room not in height:
            height[room] = 1 + max((floor(below) for below in edges[room]), default=0)
        return height[room]

    return {room: floor(room) for room in edges}


def direct(edges: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The imports that do not follow from others."""

    def reached(room: str) -> set[str]:
        return edges[room] | {further for below in edges[room] for further in reached(below)}

    return [
        (room, below)
        for room in sorted(edges)
        for below in sorted(edges[room])
        if not any(below in reached(other) for other in edges[room] - {below})
    ]


def draw(edges: dict[str, set[str]], path: Path) -> None:
    """Write the picture."""
    rcParams["svg.fonttype"], rcParams["svg.hashsalt"] = "none", "sskt"
    height = floors(edges)
    levels = [
        [room for room in ABOUT if height[room] == level] for level in range(1, max(height.values()) + 1)
    ]
    figure = Figure(figsize=(2 * WIDTH + 0.8, GAP * len(levels) + 0.2))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 2 * WIDTH + 0.8), ylim=(0, GAP * len(levels) + 0.2))
    axes.axis("off")
    centre = {
        room: (
            WIDTH + 0.4 + COLUMN.get(room, i - (len(level) - 1) / 2) * (WIDTH + 0.2),
            GAP * n + 0.5,
        )
        for n, level in enumerate(levels)
        for i, room in enumerate(level)
    }
    for room, (x, y) in centre.items():
        box = FancyBboxPatch(
            (x - WIDTH / 2, y - HEIGHT / 2), WIDTH, HEIGHT, boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=STAGES.get(room, "#f4f4f4"), edgecolor="#555555", linewidth=1,
        )  # fmt: skip
        axes.add_patch(box)
        name = NAMES.get(room, f"pipeline/{room}")
        axes.text(x, y + 0.11, name, ha="center", va="center", fontsize=12, weight="bold")
        axes.text(x, y - 0.15, ABOUT[room], ha="center", va="center", fontsize=9.5, color="#444444")
    for room, below in direct(edges):
        (x, y), (u, v) = centre[room], centre[below]
        arrow = FancyArrowPatch(
            (x, y - HEIGHT / 2), (u, v + HEIGHT / 2), arrowstyle="-|>", mutation_scale=11,
            color="#777777", linewidth=1.1, shrinkA=0, shrinkB=1,
        )  # fmt: skip
        axes.add_patch(arrow)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=100)


if __name__ == "__main__":
    draw(imports(), Path(__file__).with_name("architecture.svg"))
