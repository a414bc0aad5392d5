"""The pages say what the code forecasts."""

import cost_page
import generate_full
import generate_mvp
import pytest
from cai.models import device


@pytest.fixture(autouse=True)
def bare(tmp_path, monkeypatch):
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    with cost_page.bare_machine():
        yield


@pytest.mark.parametrize("path", cost_page.PAGES, ids=lambda path: path.name)
def test_the_pages_tables_are_those_of_the_code(path):
    page = path.read_text(encoding="utf-8")
    assert page == cost_page.updated(path, page), "python tests/costs/cost_page.py writes them anew"


def test_a_table_that_is_stale_is_seen():
    path = next(iter(cost_page.PAGES))
    page = path.read_text(encoding="utf-8")
    stale = page.replace("$35.63", "$35.64", 1)
    assert stale != page == cost_page.updated(path, stale)


@pytest.mark.parametrize(("script", "name"), [(generate_mvp, "M2"), (generate_full, "M3")])
def test_the_scripts_print_what_the_page_says(script, name, monkeypatch, capsys):
    flags = ["--forecast", "--model", cost_page.SPEC.name, "--hourly-rate", "1.74", "--engine", "local"]
    flags += ["--guard", cost_page.GUARD.name] if script is generate_full else []
    monkeypatch.setattr("sys.argv", [script.__file__, *flags])
    assert script.main() == 0
    said = capsys.readouterr().out
    total = cost_page.milestones()[-2][["M1", "M2", "M3"].index(name) + 1]
    time, dollars = total.split(", ")
    [row] = [line for line in said.splitlines() if line.strip().startswith("all ")]
    assert time in row and dollars in row and device.visible_gpus() == []
