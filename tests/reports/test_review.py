"""The review page and the marks that come back from it."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from cai.core.errors import UserError
from cai.core.jsonl import append
from cai.core.schema import FORMAT, content_id
from cai.core.text import HIDDEN
from cai.evaluation import marks as marking
from cai.evaluation.marks import Marks, read_marks
from cai.reports.review import render, write_report

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "<!-- <script> ]]> -->",
    "line\u2028and paragraph\u2029separators, a\r\nreturn, a \0 and a \ud800 alone",
    "\"double\" 'single' `back` \\u003c &lt; &amp; %%data%% %%script%%",
]


def record(instruction="What is 2 + 2?", answer="5.", revision="4.", **more):
    kept = bool(revision)
    pair = {"prompt": instruction, "chosen": revision, "rejected": answer}
    critiques = [{"principle_id": "accuracy", "principle": "Be right.", "critique": "5 is wrong."}]
    return {
        "format": FORMAT,
        "id": content_id(instruction) if "\ud800" not in instruction else "0" * 16,
        "instruction": instruction,
        "initial_answer": answer,
        "principle": "Be right.",
        "critique": "5 is wrong.",
        "revised_answer": revision,
        "preference_pair": pair if revision else None,
        "task": "math",
        "source": "flag",
        "critiques": critiques,
        "kept": kept,
        "rejected_because": [] if kept else ["no_change_needed"],
        "model": "sandbox",
        "adapter": None,
        "seed": 0,
        "tokens": {"prompt": 3, "completion": 2},
        **more,
    }


MANIFEST = {
    "format": FORMAT,
    "run": "mvp",
    "settings": {"seed": 7, "bits": 16},
    "model": "sandbox",
    "gate": {"decision": "GO"},
}


@pytest.fixture
def run_dir(tmp_path):
    """A run of two examples, the second without a revision."""
    (tmp_path / "run.json").write_text(json.dumps(MANIFEST))
    append(tmp_path / "records.jsonl", [record(), record("What is 3 + 3?", "6.", "")])
    return tmp_path


class Page(HTMLParser):
    """The elements of a page, and the text of its script and style elements."""

    def __init__(self, page: bytes):
        super().__init__()
        self.tags, self.inline, self.policy, self.inside = [], {}, "", ""
        self.feed(page.decode())
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.inside = attributes.get("id") or tag
        if attributes.get("http-equiv") == "Content-Security-Policy":
            self.policy = attributes["content"]
        assert not [a for a in attributes if a.startswith("on") or a in ("src", "style")]

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside in ("script", "style", "data"):
            self.inline[self.inside] = self.inline.get(self.inside, "") + data

    @property
    def data(self):
        return json.loads(self.inline["data"])


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_model_breaks_out_of_the_data(text):
    rows = [record(text, text, text + "!", task=text, rejected_because=[text], guard={text: text})]
    page = Page(render({**MANIFEST, "run": "mvp", "model": text}, rows))
    plain = Page(render(MANIFEST, [record()]))
    assert page.tags == plain.tags  # the same elements, whatever stands in the data
    assert page.tags.count("script") == 2 and page.tags.count("style") == 1
    assert "<" not in page.inline["data"]
    (example,) = page.data["examples"]
    assert (example["instruction"], example["initial_answer"]) == (text, text)
    assert example["revised_answer"] == text + "!"
    assert example["guard"] == {text: text} and page.data["facts"]["model"] == text


def test_the_policy_allows_the_pages_own_script_and_style_and_nothing_else():
    page = Page(render(MANIFEST, [record(HOSTILE[0])]))

    def source(name):
        return f"'sha256-{base64.b64encode(hashlib.sha256(page.inline[name].encode()).digest()).decode()}'"

    rules = dict(rule.split(" ", 1) for rule in page.policy.split("; "))
    assert rules == {
        "default-src": "'none'",
        "script-src": source("script"),
        "style-src": source("style"),
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_the_page_asks_nothing_of_anybody_and_builds_no_markup_from_text():
    page = Page(render(MANIFEST, [])).inline
    everything = "".join(page.values())
    assert not re.search(r"https?://|//\w+\.\w|@import|url\(|fetch\(|XMLHttp|WebSocket|import\(", everything)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser|srcdoc",
        page["script"],
    )
    assert "</" not in page["script"] and "</" not in page["style"]


def test_a_title_is_escaped():
    assert b"<title>a&lt;b: review</title>" in render({**MANIFEST, "run": "a<b"}, [])


def test_what_json_does_not_know_becomes_text():
    data = Page(render(MANIFEST, [record(judgement={"forward": float("nan"), "backward": 0.5})])).data
    assert data["examples"][0]["judgement"] == {"forward": "NaN", "backward": 0.5}


def test_the_page_holds_every_fact_of_an_example_once(run_dir):
    rows = [record(judgement={"passed": True}, more_evidence=[1])]
    (example,) = Page(render(MANIFEST, rows)).data["examples"]
    assert example.keys() == rows[0].keys() - {"preference_pair", "principle", "critique"} | {"texts"}
    assert Page(render(MANIFEST, rows)).data["facts"] == {
        "model": "sandbox",
        "bits": 16,
        "seed": 7,
        "gate": {"decision": "GO"},
        "settings": {"seed": 7, "bits": 16},
    }


def test_the_hash_follows_the_texts_and_not_their_order():
    a, b = record(), record("What is 3 + 3?", "6.", "")

    def key(rows):
        return Page(render(MANIFEST, rows)).data["hash"]

    assert key([a, b]) == key([b, a])
    assert len({key(rows) for rows in ([a, b], [a], [a, {**b, "initial_answer": "7."}], [])}) == 4


def test_write_report_on_a_run(run_dir):
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    data = Page(path.read_bytes()).data
    assert data["run"] == "mvp" and [e["revised_answer"] for e in data["examples"]] == ["4.", ""]
    assert sorted(p.name for p in run_dir.iterdir()) == ["records.jsonl", "report.html", "run.json"]


def test_a_page_that_cannot_be_made_leaves_the_old_one(run_dir):
    before = write_report(run_dir).read_bytes()
    append(run_dir / "records.jsonl", [record("Another", critiques=[{"principle_id": "accuracy"}])])
    with pytest.raises(UserError, match="item 1 that does not fit: the key 'principle' is missing"):
        write_report(run_dir)
    assert (run_dir / "report.html").read_bytes() == before


def test_a_run_without_examples_has_a_page(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(MANIFEST))
    assert Page(write_report(tmp_path).read_bytes()).data["examples"] == []


@pytest.mark.parametrize(
    "content", [None, "{", "[]", "{}", '{"run": 3, "settings": {}}', '{"settings": {}}', '{"run": "a"}']
)
def test_no_run_no_report(tmp_path, content):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match="run.json"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


# ---- marks ----

FIRST = content_id("What is 2 + 2?")
SECOND = content_id("What is 3 + 3?")


def mark(**changes):
    row = {"id": FIRST, "critique_meaningful": True, "revision_better": "tie", "note": ""}
    return {**row, "time": "2026-11-20T10:00:00.000Z", **changes}


def marks(run_dir, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (run_dir / "review.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return read_marks(run_dir)


def test_no_marks(run_dir):
    assert read_marks(run_dir) == {} and marks(run_dir) == {}


def test_marks_are_read_and_the_last_of_an_id_counts(run_dir):
    found = marks(
        run_dir,
        mark(),
        mark(id=SECOND, critique_meaningful=False, revision_better=None, note="why?"),
        "",
        mark(critique_meaningful=None, revision_better="first", time="2026-11-20T09:00:00.000Z"),
    )
    assert found == {
        FIRST: Marks(None, "first", "", "2026-11-20T09:00:00.000Z"),
        SECOND: Marks(False, None, "why?", "2026-11-20T10:00:00.000Z"),
    }


def test_marks_with_a_byte_order_mark_and_windows_line_ends(run_dir):
    (run_dir / "review.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(mark()).encode() + b"\r\n")
    assert read_marks(run_dir).keys() == {FIRST}


@pytest.mark.parametrize(
    "row, says",
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a JSON object"),
        ({k: v for k, v in mark().items() if k != "note"}, "'note' is missing"),
        (mark(critique_meaningful="yes"), "'critique_meaningful' is of type str"),
        (mark(critique_meaningful=1), "'critique_meaningful' is of type int"),
        (mark(revision_better="second"), "it can be"),
        (mark(time="yesterday"), "ISO 8601"),
        (mark(id="feedfeedfeedfeed"), "no example 'feedfeedfeedfeed'"),
        (mark(texts="0" * 16), "had other texts"),
        (mark(id=SECOND), "was not revised"),
    ],
)
def test_a_line_that_is_no_mark_is_named(run_dir, row, says):
    with pytest.raises(UserError, match=f"review.jsonl, line 2: .*{says}"):
        marks(run_dir, mark(), row)


def test_marks_that_are_not_text(run_dir):
    (run_dir / "review.jsonl").write_bytes(b"\xff\xfe{")
    with pytest.raises(UserError, match="not UTF-8"):
        read_marks(run_dir)


def test_a_mark_names_the_texts_that_the_page_shows(run_dir):
    texts = {e["id"]: e["texts"] for e in Page(write_report(run_dir).read_bytes()).data["examples"]}
    assert marks(run_dir, mark(texts=texts[FIRST])).keys() == {FIRST}


# ---- in a browser ----

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --virtual-time-budget=5000 --window-size=1200,800"
).split()
# Stands in for a person: presses keys, then writes down what came of it.
DRIVER = """
addEventListener("load", async () => {
  const press = (...keys) => keys.forEach((key) => (document.activeElement ?? document.body).dispatchEvent(
    new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true })));
  const search = (text) => new Promise((done) => {
    $("search").value = text;
    $("search").dispatchEvent(new Event("input"));
    setTimeout(() => done(visible.length), 500);
  });
  const out = { rows: document.querySelectorAll(".row").length, first: at };
  press("j", "ArrowDown", "k", "y", "r", "n", "j", "t");
  $("note").value = "</script> y n";
  $("note").dispatchEvent(new Event("input"));
  out.at = at;
  out.kept = Object.fromEntries(parseMarks(localStorage.getItem(markKey(data.hash))));
  let blob;
  URL.createObjectURL = (b) => { blob = b; return "#"; };
  press("e");
  out.exported = await blob.text();
  press("k", "x");
  out.afterUnmark = marks.size;
  importMarks(out.exported);
  out.afterImport = marks.size;
  out.filters = {};
  const wanted = { status: "rejected", marked: "marked", reason: "no_change_needed", principle: "accuracy" };
  for (const [id, value] of Object.entries(wanted)) {
    $(id).value = value;
    applyFilters();
    out.filters[id] = visible.length;
    $(id).value = "";
  }
  applyFilters();
  out.found = [];
  for (const text of ["EXAMPLE 17", '"example 17"', "17 nowhere", ""]) out.found.push(await search(text));
  const old = (parts) => parts.map((p) => p.same?.[0] ?? p.del).join("");
  const made = (parts) => parts.map((p) => p.same?.[1] ?? p.ins).join("");
  const texts = ["The quick fox.", "The slow fox, really.", "", " a  b", "因为空气", "因为 e\\u0301"];
  out.diffs = texts.every((a) => texts.every((b) => old(compare(a, b)) === a && made(compare(a, b)) === b));
  out.changed = compare(texts[0], texts[1]).filter((p) => !p.same).map((p) => [p.del.trim(), p.ins.trim()]);
  document.body.append(el("pre", { id: "out", text: JSON.stringify(out) }));
});
"""


@pytest.fixture
def browse(tmp_path):
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: the page is not opened in a browser")

    def dump(page: bytes) -> str:
        path = tmp_path / "report.html"
        path.write_bytes(page)
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path}/profile", "--dump-dom", path.as_uri()]
        return subprocess.run(command, capture_output=True, encoding="utf-8", check=True, timeout=300).stdout

    return dump


@pytest.mark.slow
def test_a_browser_runs_the_page_and_not_what_a_model_wrote(browse):
    attack = "<img src=x onerror=\"document.title='bad'\"></script><script>document.title='bad'</script>"
    dom = browse(
        render(MANIFEST, [record(attack, attack, attack + " again", judgement={attack: "constructor"})])
    )
    assert "<title>mvp: review</title>" in dom  # nothing of it ran
    assert "1 example · 0 fully marked" in dom  # and the page's own script did, under its policy
    assert "constructor</span>" in dom and "native code" not in dom.partition("<body")[2]
    assert dom.count("<img") == 0 and dom.count("&lt;img src=x") >= 4


@pytest.mark.slow
def test_keys_marks_filters_search_and_export_in_a_browser(browse):
    rows = [record(f"Example {i}", f"First {i}.", f"Revised {i}." if i % 3 else "") for i in range(1, 501)]
    page = render(MANIFEST, rows).decode()
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    page = page.replace("</head>", f"<script>{DRIVER.replace('</', chr(92) + 'x3c/')}</script></head>")
    dom = browse(page.encode())
    out = json.loads(html.unescape(re.search(r'<pre id="out">(.*?)</pre>', dom, re.DOTALL)[1]))
    assert 5 < out["rows"] < 60 and out["first"] == 0  # 500 examples, only those in sight are in the page
    second, third = rows[1]["id"], rows[2]["id"]
    assert out["at"] == 2
    answers = ("critique_meaningful", "revision_better", "note")
    answered = {i: [m[k] for k in answers] for i, m in out["kept"].items()}
    # The third has no revision to compare: "t" did nothing, the note is all there is.
    assert answered == {second: [False, "revision", ""], third: [None, None, "</script> y n"]}
    exported = [json.loads(line) for line in out["exported"].splitlines()]
    assert [row["id"] for row in exported] == [second, third]
    assert exported[0].keys() == {*marking.MARK_KEYS, "texts"}
    assert (out["afterUnmark"], out["afterImport"]) == (1, 2)
    assert out["filters"] == {"status": 166, "marked": 2, "reason": 166, "principle": 500}
    assert out["found"] == [15, 11, 0, 500]  # 17 and 170 to 179, as words also 117 to 417
    assert out["diffs"] and out["changed"] == [["quick", "slow"], ["", ", really"]]


HIDES = "a\x1b[31mb\x9bc\u202ed\u2066e\u200bf\u200e\u2060\ufeff\U000e0041\ud800pa\u200dss\r\nend"
SHOWN = r"a\x1b[31mb\x9bc\u202ed\u2066e\u200bf\u200e\u2060\ufeff\U000e0041\ud800pa\u200dss\r" + "\nend"
MEANT = "👩‍🚀 ❤️‍🔥 שלום می\u200cخواهم क्\u200dष 1️⃣"
# Shows all that the page says of a text, copies it, marks it, and writes down what came of it.
COPIER = """
addEventListener("load", () => {
  const out = {}, copied = (node) => {
    getSelection().selectAllChildren(node);
    const about = { clipboardData: new DataTransfer(), bubbles: true, cancelable: true };
    const event = new ClipboardEvent("copy", about);
    node.dispatchEvent(event);
    return [event.clipboardData.getData("text/plain"), event.defaultPrevented];
  };
  const [first, second, said] = document.querySelectorAll(".prose");
  out.first = first.textContent;
  [out.copied, out.taken] = copied(first);
  out.after = first.textContent;
  out.tokens = [...first.querySelectorAll("span.ctrl")].map((token) => token.textContent);
  out.meant = [said.textContent, said.querySelectorAll(".ctrl").length, copied(said)[1]];
  out.facts = document.querySelector("#example .facts").textContent;
  out.rows = document.querySelector(".row .title").textContent;
  out.option = $("task").textContent;
  out.key = document.querySelector(".more").textContent;
  $("note").value = "\\u202e of mine";
  $("note").dispatchEvent(new Event("input"));
  let blob;
  URL.createObjectURL = (b) => { blob = b; return "#"; };
  act("e");
  blob.text().then((text) => {
    out.exported = text;
    document.body.append(el("pre", { id: "out" }));
    $("out").textContent = JSON.stringify(out);
  });
});
"""


@pytest.mark.slow
def test_what_does_not_show_is_a_token_in_a_browser_and_copies_as_it_was(browse):
    rows = [record(HIDES, HIDES, MEANT, task="ma\u202eth", more={"k\u200b": "v\u202e"})]
    rows[0]["critiques"][0]["critique"] = MEANT
    page = render(MANIFEST, rows).decode()
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    dom = browse(page.replace("</head>", f"<script>{COPIER}</script></head>").encode())
    out = json.loads(html.unescape(re.search(r'<pre id="out">(.*?)</pre>', dom, re.DOTALL)[1]))
    assert out["first"] == out["after"] == out["rows"] == SHOWN
    assert out["tokens"][:3] == [r"\x1b", r"\x9b", r"\u202e"] and len(out["tokens"]) == 12
    assert out["copied"].replace("\ufffd", "\ud800") == HIDES and out["taken"]
    assert out["meant"] == [MEANT, 0, False]
    assert r"ma\u202eth" in out["facts"] and r"ma\u202eth" in out["option"]
    assert r"k\u200b" in out["key"] and r"v\u202e" in out["key"]
    assert json.loads(out["exported"])["note"] == "\u202e of mine"


def test_the_pages_rule_for_what_does_not_show_is_the_terminals():
    assert Page(render(MANIFEST, [record()])).data["hidden"] == HIDDEN


def test_the_page_counts_as_kept_what_makes_a_pair():
    """Boilerplate shows only in the whole run: no record names it, the page does."""
    topics = "rivers bread clocks violins tides moss".split()
    rows = [record(f"Tell of {t}.", f"On {t}.", f"Few know {t}. I hope that this helps you!") for t in topics]
    assert all(r["kept"] for r in rows)
    shown = Page(render(MANIFEST, [*rows, record()])).data["examples"]
    assert [e["rejected_because"] for e in shown] == [["boilerplate"]] * len(rows) + [[]]
    assert [e["kept"] for e in shown] == [False] * len(rows) + [True]
