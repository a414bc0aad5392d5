"""README and specs: links lead somewhere, the tree is the tree, and every command shown is one that runs."""

import re
import shlex
import subprocess
import sys

import pytest
from cai.core.files import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "specs").glob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    broken = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not broken


def listed():
    """Paths in the README's tree; indentation says which directory a line belongs to."""
    tree = README.split("## The files", 1)[1].split("```")[1]
    parents, paths = [], []
    for indent, name in re.findall(r"^( *)(\S+)  +\S", tree, re.MULTILINE):
        parents = [*parents[: len(indent) // 2], name]
        paths.append("".join(parents))
    return paths


def test_the_tree_lists_what_there_is():
    paths = listed()
    assert [p for p in paths if not (ROOT / p).exists()] == []
    code = [
        p
        for pattern in ("scripts/*.*", "scripts/cai/*.py", "scripts/cai/sandbox/*.py")
        for p in ROOT.glob(pattern)
    ]
    there = {str(p.relative_to(ROOT)) for p in code if p.name != "__init__.py"}
    assert there - set(paths) == set()


def commands():
    """Each `python scripts/...` or `bash ...` line of the README's and the specs' bash blocks."""
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] in (["python"], ["bash"]):
                    yield words


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_commands_name_scripts_and_flags_that_exist(words):
    script, flags = ROOT / words[1], [w for w in words[2:] if w.startswith("--")]
    assert script.is_file()
    if words[0] == "python" and flags:
        shown = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True)
        assert [f for f in flags if f"{f} " not in shown.stdout.replace("\n", " ").replace("]", " ")] == []


def test_the_milestones_that_are_only_planned_say_so():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        missing = {s for s in re.findall(r"scripts/(\w+\.py)", text) if not (ROOT / "scripts" / s).exists()}
        assert not missing or "(planned)" in text.splitlines()[0], (page.name, missing)


def test_pages_hold_no_path_of_one_machine():
    for page in (*PAGES, ROOT / "LICENSE", ROOT / "constitution.yaml"):
        found = re.findall(r"(?:^|[\s`(])(/(?:work|root|home|tmp|opt)/\S*)", page.read_text(encoding="utf-8"))
        assert not found, page.name
