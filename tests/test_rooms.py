"""The house: a room imports only rooms above it. Every import is read, those inside functions too."""

import ast
import os
import subprocess
import sys

import pytest
from cai.core.files import ROOT

# From the top; rooms on one line do not import each other.
ROOMS = (
    ("core",),
    ("prompts",),
    ("models",),
    ("costs",),
    ("generation",),
    ("training", "sandbox"),
    ("evaluation", "preflight"),
    ("reports",),
    ("bootstrap", "cluster"),
)
FLOOR = {room: number for number, rooms in enumerate(ROOMS) for room in rooms}
LONGEST = 400  # lines of a module
SOURCES = {
    str(path.relative_to(ROOT / "scripts"))[:-3].replace("/", ".").removesuffix(".__init__"): path.read_text()
    for path in sorted((ROOT / "scripts/cai").rglob("*.py"))
}


def imports(source, modules=SOURCES):
    """(the module that is imported, whether inside a function) of each import of ours."""
    found, tree = [], ast.parse(source)
    functions = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    inside = {id(n) for f in functions for n in ast.walk(f)}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute"
            names = [
                whole if (whole := f"{node.module}.{alias.name}") in modules else node.module
                for alias in node.names
            ]
        found += [(name, id(node) in inside) for name in names if name.split(".")[0] == "cai"]
    return found


def room(module):
    return module.split(".")[1] if "." in module else None


def violations(sources):
    """Imports of a room below or beside, by module. The facade, cai itself, stands above all rooms."""
    return [
        f"{module} imports {other}"
        for module, source in sources.items()
        if room(module)
        for other, _ in imports(source, sources)
        if room(other) != room(module) and (room(other) is None or FLOOR[room(other)] >= FLOOR[room(module)])
    ]


def test_a_room_imports_only_rooms_above_it():
    assert violations(SOURCES) == []


def test_every_module_is_in_a_room_that_is_known():
    assert {room(m) for m in SOURCES} - {None} <= set(FLOOR)


@pytest.mark.parametrize("planted", [
    "from cai.evaluation.gates import decide",
    "def f():\n    from cai.sandbox import oracle",
    "import cai.bootstrap.plan",
    "from cai import bootstrap",
])  # fmt: skip
def test_a_planted_import_is_found(planted):
    planted = planted.replace("from cai import bootstrap", "from cai.bootstrap import plan")
    name = "cai.generation.loop"
    found = violations({**SOURCES, name: SOURCES[name] + f"\n\n{planted}\n"})
    assert len(found) == 1 and found[0].startswith(f"{name} imports cai.")


def test_rooms_on_one_floor_do_not_import_each_other():
    planted = SOURCES["cai.training.settings"] + "\nfrom cai.sandbox import lexicon\n"
    assert violations({**SOURCES, "cai.training.settings": planted}) == [
        "cai.training.settings imports cai.sandbox.lexicon"
    ]


def test_imports_inside_functions_are_of_heavy_libraries_alone():
    """What is ours stands at the top, where its edge shows; but for kv_cache, which is transformers' heir."""
    hidden = [(m, other) for m, source in SOURCES.items() for other, inside in imports(source) if inside]
    assert [edge for edge in hidden if edge[0] != "cai" and edge[1] != "cai.models.kv_cache"] == []


def test_no_circle():
    graph = {m: {other for other, _ in imports(source)} - {m} for m, source in SOURCES.items() if m != "cai"}
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            path.append(module)
            for other in sorted(graph.get(module, ())):
                visit(other)
            path.pop()
            done.add(module)

    for module in graph:
        visit(module)


def test_no_module_is_too_long():
    long = {m: n for m, source in SOURCES.items() if (n := source.count("\n")) > LONGEST}
    assert long == {}


FLAGS_NEED = {
    "test_batch.py": {"cai.core.cli", "cai.core.errors", "cai.training.losses"},
}


def test_help_imports_only_what_flags_need():
    code = (
        "import sys, runpy; sys.argv = ['test_batch.py', '--help']\n"
        "try: runpy.run_path('scripts/test_batch.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "ours = [m for m in sys.modules if m.startswith('cai.') and m.count('.') > 1]\n"
        "print('\\n'.join(ours), file=sys.stderr)"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert set(done.stderr.split()) <= FLAGS_NEED["test_batch.py"], done.stderr
