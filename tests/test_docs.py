"""README and specs: links lead somewhere, the tree is the tree, and every command shown is one that runs."""

import re
import shlex
import subprocess
import sys

import pytest
from cai.core.files import ROOT
from cai.models.vllm_environment import ENVIRONMENT_GB
from test_rooms import ROOMS

PAGES = [ROOT / "README.md", *sorted((ROOT / "specs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    broken = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not broken


def listed(page, heading):
    """Paths in the tree below a page's heading; indentation says which directory a line belongs to."""
    tree = page.read_text(encoding="utf-8").split(f"\n{heading}\n", 1)[1].split("```")[1]
    parents, paths = [], []
    for indent, name in re.findall(r"^( *)(\S+)(?:  +\S|$)", tree, re.MULTILINE):
        parents = [*parents[: len(indent) // 2], name]
        paths.append("".join(parents))
    return paths


def test_the_readme_lists_every_script_and_room_and_nothing_that_is_not_there():
    paths = listed(ROOT / "README.md", "## The files")
    scripts = {f"scripts/{path.name}" for path in (ROOT / "scripts").glob("*.*")}
    rooms = {f"scripts/cai/{path.parent.name}/" for path in (ROOT / "scripts/cai").glob("*/__init__.py")}
    assert {p for p in paths if p.startswith("scripts/")} == scripts | rooms | {"scripts/", "scripts/cai/"}
    assert [p for p in paths if not (ROOT / p).exists()] == [] and len(set(paths)) == len(paths)


def test_the_house_lists_every_module_and_nothing_that_is_not_there():
    paths = listed(ROOT / "specs/house.md", "## Modules")
    found = {path.relative_to(ROOT).as_posix() for path in (ROOT / "scripts/cai").rglob("*.py")}
    modules = {p for p in found if not p.endswith("__init__.py")}
    files = {p for p in paths if not p.endswith("/")}
    assert modules <= files <= found and len(set(paths)) == len(paths)
    assert [p for p in paths if not (ROOT / p).exists()] == []


def test_the_house_has_the_rooms_in_the_order_that_is_enforced():
    table = (ROOT / "specs/house.md").read_text(encoding="utf-8").split("| room |")[1].split("\n\n")[0]
    there = tuple(tuple(re.findall(r"`(\w+)`", line.split("|")[1])) for line in table.splitlines()[2:])
    built = [tuple(room for room in rooms if (ROOT / "scripts/cai" / room).is_dir()) for rooms in ROOMS]
    assert list(there) == built


PLANS = sorted((ROOT / "specs/plans").glob("*.yaml"))


@pytest.mark.parametrize(
    "page", [p for p in (*PAGES, *PLANS) if p.name != "LOG.md"], ids=lambda page: page.name
)
def test_modules_that_a_page_names_exist(page):
    """The log's older entries use the names of their time."""
    text, rooms = page.read_text(encoding="utf-8"), "|".join(room for some in ROOMS for room in some)
    named = re.findall(rf"(?<![\w/])(?:scripts/)?(?:cai/)?((?:{rooms})/[\w/]+\.py)\b", text)
    named += re.findall(r"\bcai/([\w/]+\.py)\b", text)
    assert {name for name in named if not (ROOT / "scripts/cai" / name).exists()} == set()


INLINE = r"`((?:[A-Z_]+=\S+\s)?(?:python|bash)\s(?:scripts/|tests/|setup_)[^`]*)`"


def commands():
    """Each `python scripts/...` or `bash ...` line of the README's and the specs' bash blocks, and of their
    texts and tables, once each. The log's are of their time."""
    found = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        inline = re.findall(INLINE, re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        for line in [*"\n".join(blocks).splitlines(), *(inline if page.name != "LOG.md" else ())]:
            words = [w for w in shlex.split(line, comments=True) if not re.match(r"[A-Z_]+=", w)]
            if words[:1] in (["python"], ["bash"]):
                found[" ".join(words)] = words
    return found.values()


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


def test_the_first_hour_names_what_its_commands_need_before_them():
    hour = (
        (ROOT / "specs/gpu.md").read_text(encoding="utf-8").split("## The first hour")[1].split("## Seen")[0]
    )
    first = hour.index("`python scripts/")
    assert "source .venv/bin/activate\n" in hour[:first] and "export HF_HOME=" in hour[:first]
    assert "git commit -m" in hour  # a pod may have no editor


def test_the_readme_asks_for_the_disk_that_vllms_environment_is_checked_for():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    said = re.findall(r"about (\d+) GB (?:for vLLM's|with its downloads)", text)
    assert [float(gb) for gb in said] == [ENVIRONMENT_GB] * 2


@pytest.mark.parametrize("script", ["setup_environment.sh", "tests/run.sh", "tests/vllm.sh"])
def test_help_is_printed_and_nothing_is_done(script):
    done = subprocess.run(["bash", ROOT / script, "--help"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0 and f"bash {script}" in done.stdout and "installing" not in done.stdout
