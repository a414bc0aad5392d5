"""The house: a room imports only rooms above it. Every import is read, those inside functions too."""

import ast
import functools
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


@functools.cache
def imports(source):
    """(the module that is imported, whether inside a function) of each import of ours."""
    found, tree = [], ast.parse(source)
    functions = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    inside = {id(n) for f in functions for n in ast.walk(f)}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            names = [
                whole if (whole := f"{node.module}.{alias.name}") in SOURCES else node.module
                for alias in node.names
            ]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in SOURCES:
            names = [node.value] if node.value != "cai" else []  # as import_module and __import__ take it
        found += [(name, id(node) in inside) for name in names if name.split(".")[0] == "cai"]
    return found


def room(module):
    return module.split(".")[1] if "." in module else None


def violations(sources):
    """Imports of a room below or beside, by module. The facade, cai itself, stands above all rooms: none may
    import it."""
    return [
        f"{module} imports {other}"
        for module, source in sources.items()
        if room(module)
        for other, _ in imports(source)
        if room(other) != room(module) and FLOOR.get(room(other), len(ROOMS)) >= FLOOR[room(module)]
    ]


def hidden(sources):
    """Imports of ours inside functions. What is ours stands at the top, where its edge shows; but for
    kv_cache, which is transformers' heir, and the facade, which imports everything when it is first used."""
    return [
        (module, other)
        for module, source in sources.items()
        for other, inside in imports(source)
        if inside and module != "cai" and other != "cai.models.kv_cache"
    ]


def circle(sources):
    """The modules of a circle of imports, first and last the same; [] if there is none."""
    graph = {m: {other for other, _ in imports(s)} for m, s in sources.items() if m != "cai"}
    done, path = set(), []

    def visit(module):
        if module in path:
            return [*path[path.index(module) :], module]
        if module not in done:
            path.append(module)
            for other in sorted(graph.get(module, ())):
                if found := visit(other):
                    return found
            path.pop()
            done.add(module)
        return []

    return next((found for module in graph if (found := visit(module))), [])


def planted(name, line):
    return {**SOURCES, name: f"{SOURCES[name]}\n\n{line}\n"}


def test_a_room_imports_only_rooms_above_it():
    assert violations(SOURCES) == []


def test_every_module_is_in_a_room_that_is_known():
    assert {room(m) for m in SOURCES} - {None} <= set(FLOOR)


# How a line can import another room's module; each has to be seen.
WAYS = (
    "from cai.{room}.{module} import something",
    "from cai.{room}.{module} import something as other",
    "from cai.{room} import {module}",
    "from cai.{room} import {module} as other",
    "from cai import {room}",
    "from cai import {room} as other",
    "import cai.{room}",
    "import cai.{room}.{module}",
    "import cai.{room}.{module} as other",
    "import json, cai.{room}.{module} as other",
    "def f():\n    from cai.{room} import {module}",
    "async def f():\n    import cai.{room}.{module} as other",
    "class C:\n    def f(self):\n        from cai import {room}",
    "if TYPE_CHECKING:\n    from cai.{room}.{module} import something",
    "try:\n    from cai.{room} import *\nexcept ImportError:\n    pass",
    "other = importlib.import_module('cai.{room}.{module}')",
)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("cai.generation.loop", "cai.evaluation.gates"),  # below
        ("cai.generation.loop", "cai.bootstrap.plan"),
        ("cai.core.jsonl", "cai.prompts.markers"),
        ("cai.training.settings", "cai.sandbox.lexicon"),  # beside
        ("cai.sandbox.lexicon", "cai.training.settings"),
        ("cai.evaluation.gates", "cai.preflight.packages"),
    ],
)
def test_a_planted_import_is_found_however_it_is_written(name, other, way):
    _, of, module = other.split(".")
    [found] = violations(planted(name, way.format(room=of, module=module)))
    assert found in (f"{name} imports {other}", f"{name} imports cai.{of}")


@pytest.mark.parametrize("line", ["import cai", "from cai import align", "from cai import cluster"])
def test_no_room_imports_the_facade_or_a_room_that_is_not_there(line):
    assert len(violations(planted("cai.generation.loop", line))) == 1


@pytest.mark.parametrize(
    "line", ["from . import gates", "from .filters import reasons", "from .. import core"]
)
def test_a_relative_import_is_refused(line):
    with pytest.raises(AssertionError, match="imports are absolute"):
        violations(planted("cai.generation.loop", line))


@pytest.mark.parametrize(
    "line",
    ["from cai.core import jsonl", "import cai.generation.filters as f", "import torch.cai.evaluation"],
)
def test_what_is_above_or_of_the_same_room_or_not_ours_may_be_imported(line):
    assert violations(planted("cai.generation.loop", line)) == []


def test_imports_inside_functions_are_of_heavy_libraries_alone():
    assert hidden(SOURCES) == []
    line = "def f():\n    import torch\n    import cai.core.jsonl as j"
    assert hidden(planted("cai.generation.loop", line)) == [("cai.generation.loop", "cai.core.jsonl")]


def test_no_circle():
    assert circle(SOURCES) == []
    for line in ("from cai.core.run import Run", "import cai.core.run as r", "from cai.core import run"):
        found = circle(planted("cai.core.files", line))
        assert found[0] == found[-1] and {"cai.core.files", "cai.core.run"} <= set(found)
    assert circle(planted("cai.core.text", "import cai.core.text")) == ["cai.core.text"] * 2


def too_long(sources):
    return [name for name, source in sources.items() if len(source.splitlines()) > LONGEST]


def test_no_module_is_too_long():
    scripts = {path.name: path.read_text() for path in (ROOT / "scripts").glob("*.py")}
    assert too_long(SOURCES | scripts) == []
    assert too_long({"a": "x = 1\n" * LONGEST, "b": "x = 1\n" * LONGEST + "x = 1"}) == ["b"]


FLAGS_NEED = {"cai.training.losses"} | {
    f"cai.core.{m}" for m in ("cli", "errors", "files", "terminal", "text")
}
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.py"))


def modules_of_help(script):
    """What a script's --help imports, beyond what Python itself begins with."""
    code = (
        "import sys, runpy; before = set(sys.modules); "
        f"sys.argv = ['{script}', '--help']\n"
        f"try: runpy.run_path('scripts/{script}', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(*(set(sys.modules) - before), file=sys.stderr)"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "usage:" in done.stdout and "python scripts/" in done.stdout, done.stderr
    return set(done.stderr.split())


def test_help_imports_only_what_flags_need():
    found = {m for m in modules_of_help("test_batch.py") if m.startswith("cai.") and m.count(".") > 1}
    assert found <= FLAGS_NEED


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_imports_no_third_party_package(script):
    tops = {m.split(".")[0] for m in modules_of_help(script)}
    assert tops - set(sys.stdlib_module_names) - {"cai"} == set()
