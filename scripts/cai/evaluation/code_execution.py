"""Runs a function that a model wrote, in a process of its own that can do nothing but compute.

What may run is a subset of Python without side effects: functions, control flow, arithmetic, containers and
text, and a few names of the standard library. Anything else (a class, a name or attribute with an
underscore before it, a method that is not listed) is refused before it runs. The process behind it has no
environment, no open file to spare (RLIMIT_NOFILE 0: neither files nor sockets), and little time and memory.

This file is also the program of that process, started by its path with -I -S: it imports nothing of ours.
"""

from __future__ import annotations

import ast
import builtins
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

CPU_SECONDS, WALL_SECONDS, MEMORY, OUTPUT, SOURCE = 2, 30, 512 << 20, 100_000, 20_000
NODES = (
    *(ast.Module, ast.FunctionDef, ast.arguments, ast.arg, ast.Return, ast.Lambda, ast.Nonlocal, ast.keyword),
    *(ast.Assign, ast.AugAssign, ast.AnnAssign, ast.NamedExpr, ast.Expr, ast.Pass, ast.Assert, ast.Delete),
    *(ast.For, ast.While, ast.If, ast.Break, ast.Continue, ast.IfExp, ast.Try, ast.ExceptHandler, ast.Raise),
    *(ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Compare, ast.boolop, ast.operator, ast.unaryop, ast.cmpop),
    *(ast.Call, ast.Attribute, ast.Subscript, ast.Slice, ast.Starred, ast.Name, ast.expr_context),
    *(ast.Constant, ast.JoinedStr, ast.FormattedValue, ast.List, ast.Tuple, ast.Set, ast.Dict),
    *(ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.comprehension, ast.Yield, ast.YieldFrom),
    *(ast.Import, ast.ImportFrom, ast.alias),
)

BUILTINS = (
    "abs all any bin bool chr dict divmod enumerate filter float frozenset hex int isinstance iter len list "
    "map max min next oct ord pow range reversed round set slice sorted str sum tuple zip True False None "
    "Exception ArithmeticError AssertionError IndexError KeyError LookupError StopIteration TypeError "
    "ValueError ZeroDivisionError"
).split()

LIBRARY = {
    "math": "ceil comb e factorial fabs floor fsum gcd inf isclose isqrt lcm log log10 log2 perm pi pow prod "
    "sqrt trunc",
    "collections": "Counter OrderedDict defaultdict deque",
    "itertools": "accumulate chain combinations count cycle groupby islice pairwise permutations product "
    "repeat starmap takewhile dropwhile zip_longest",
    "functools": "cache lru_cache reduce",
    "string": "ascii_letters ascii_lowercase ascii_uppercase digits punctuation whitespace",
    "re": "sub findall finditer split match search fullmatch compile escape IGNORECASE",
    "typing": "Any Callable Dict Iterable Iterator List Optional Sequence Set Tuple Union",
}

# str.format reaches into attributes by its text, so neither it nor format_map is among the methods.
METHODS = {
    name
    for kind in (str, list, dict, set, frozenset, tuple, int, float)
    for name in dir(kind)
    if not name.startswith("_") and name not in ("format", "format_map")
} | set("most_common elements appendleft popleft extendleft rotate total group groups start end span".split())

ATTRIBUTES = METHODS | {name for names in LIBRARY.values() for name in names.split()} | {"from_iterable"}


def source_of(answer: str) -> str:
    """The code of an answer: its first fenced block; else what goes from the first line of code on to the
    next one that is none."""
    for fence in ("```", "~~~"):
        parts = answer.split(fence)
        if len(parts) >= 2:
            first, _, rest = parts[1].partition("\n")
            return rest if first.strip().lower() in ("", "python", "python3", "py") else parts[1]
    lines, found = answer.splitlines(), []
    for line in lines:
        is_code = line.startswith(("def ", "import ", "from ", "@"))
        if found and line.strip() and not is_code and not line[:1].isspace():
            break
        if found or is_code:
            found.append(line)
    return "\n".join(found)


def refused(source: str) -> str | None:
    """Why a program may not run; None if it may."""
    if len(source) > SOURCE:
        return f"longer than {SOURCE} characters"
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"does not parse: {type(error).__name__}"
    for node in ast.walk(tree):
        if not isinstance(node, NODES):
            return f"{type(node).__name__} is not allowed"
        if isinstance(node, ast.Attribute) and node.attr not in ATTRIBUTES:
            return f"the attribute {node.attr} is not allowed"
        if isinstance(node, ast.ImportFrom) and node.level:
            return "an import from a package is not allowed"
        if isinstance(node, ast.ImportFrom) and node.module not in LIBRARY:
            return f"the import of {node.module} is not allowed"
        if isinstance(node, ast.Import) and any(a.name not in LIBRARY for a in node.names):
            return "an import is not allowed"
        if isinstance(node, ast.ImportFrom):
            known = LIBRARY[node.module].split()
            if any(a.name not in known for a in node.names):
                return f"an import from {node.module} is not allowed"
        names = [getattr(node, key, None) for key in ("id", "name", "arg", "asname")]
        names += getattr(node, "names", []) if isinstance(node, ast.Nonlocal) else []
        if any(isinstance(name, str) and name.startswith("__") for name in names):
            return "a name that begins with two underscores is not allowed"
    return None


def results(answer: str, function: str, arguments: Sequence[list]) -> list[Any] | None:
    """What the function of an answer returns for each list of arguments, as JSON has it (a tuple is a list,
    a dictionary's keys are text); None if it is refused, is not there, fails anywhere, or takes too long."""
    asked = json.dumps([source_of(answer), function, list(arguments)])
    with tempfile.TemporaryDirectory() as empty:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", __file__],
                input=asked.encode("utf-8", "replace"),
                capture_output=True,
                timeout=WALL_SECONDS,
                env={},
                cwd=empty,
            )
        except subprocess.TimeoutExpired:
            return None
    if done.returncode:
        return None
    return json.loads(done.stdout)["results"]


def passes(answer: str, function: str, cases: Sequence[Sequence[Any]]) -> bool:
    """Whether the function returns what each case [arguments, result] says. True is not 1, but 2 is 2.0."""
    found = results(answer, function, [arguments for arguments, _ in cases])
    return found is not None and all(same(a, b) for a, (_, b) in zip(found, cases, strict=True))


def same(a: Any, b: Any) -> bool:
    """Equal as JSON values; numbers up to rounding."""
    numbers = (int, float)
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, numbers) and isinstance(b, numbers):
        return a == b or abs(a - b) <= 1e-9 * max(abs(a), abs(b))
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


def main() -> None:
    """The process: reads [source, function, argument lists]; writes results (a list or null) and why not."""
    import importlib
    import resource

    importlib.import_module("heapq")  # Counter imports it when it is used, and then no file can be opened

    source, function, arguments = json.loads(sys.stdin.buffer.read())
    why = refused(source)
    library = {}
    for name in [name for name in LIBRARY if why is None and name in source]:  # typing and re take a while
        module = importlib.import_module(name)
        library[name] = SimpleNamespace(**{n: getattr(module, n) for n in LIBRARY[name].split()})
    allowed = {name: getattr(builtins, name) for name in BUILTINS}
    allowed["print"] = lambda *a, **k: None
    allowed["__import__"] = lambda name, *a, **k: library[name]
    for limit, value in (
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    found = None
    if why is None:
        world: dict[str, Any] = {"__builtins__": allowed, "__name__": "answer"}
        try:
            exec(compile(source, "answer", "exec"), world)
            found = [json.loads(json.dumps(world[function](*given))) for given in arguments]
        except Exception as error:  # whatever the code does wrong, it is the code's failure, and is said
            why = type(error).__name__
    line = json.dumps({"results": found, "why": why})
    sys.stdout.write(line if len(line) <= OUTPUT else json.dumps({"results": None, "why": "too long"}))


if __name__ == "__main__":
    main()
