"""Three floors: the method, what is measured (study), what is taught (course); the command line is over all."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"study": 1, "course": 2, "cli": 3, "__main__": 3}  # the method is 0
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "modegpt").rglob("*.py"))
}


def imports(module: str) -> set[str]:
    """The modules of ours that a module imports, inside of functions too."""
    named = set()
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            named |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:  # a file that travels may need the one beside it
                assert module.startswith("modegpt.modeling."), f"line {node.lineno}: a relative import"
                continue
            whole = {f"{node.module}.{name.name}" for name in node.names}
            named |= whole if whole <= FILES.keys() else whole | {node.module}
    return named & FILES.keys()


def floor(module: str) -> int:
    return FLOORS.get(f"{module}.".split(".")[1], 0)


@pytest.mark.parametrize("module", FILES)
def test_nothing_imports_from_a_floor_above(module):
    assert {name for name in imports(module) if floor(name) > floor(module)} == set()


def test_no_two_modules_need_each_other():
    TopologicalSorter({module: imports(module) for module in FILES}).prepare()  # raises CycleError, which names them


@pytest.mark.parametrize("module", [name for name in FILES if name.startswith("modegpt.modeling.")])
def test_what_travels_with_a_checkpoint_needs_nothing_of_ours(module):
    assert imports(module) == set()
