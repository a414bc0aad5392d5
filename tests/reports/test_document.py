"""A document as HTML and as Markdown, and the theme that its page and the review page share."""

import base64
import hashlib
import html
import re

import pytest
from cai.reports.document import Cell, Items, Picture, Table, Text, as_html, as_markdown
from cai.reports.pages import TEMPLATES
from cai.reports.review import render

HOSTILE = ["<script>alert(1)</script>", '"onload=x {{ 7 * 7 }} {% raw %}', "</style> | *b* `c`"]


def blocks(text):
    kinds = [Text(kind, text, "good") for kind in ("h1", "h2", "p", "quiet", "lead")]
    table = Table(text, (text, text), [(text, Cell(text, "bad")), (Cell(text), text)])
    return [*kinds, Items([text, text]), table, Picture("plots/a_b.png", text, b"<svg/>", b"<svg>dark</svg>")]


def elements(page):
    return re.findall(r"</?([a-z1-9]+)", page.partition("</style>")[2])


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_becomes_markup_in_either_form(text):
    page = as_html(text, blocks(text))
    assert elements(page) == elements(as_html("plain", blocks("plain")))
    unescaped = html.unescape(page)
    assert unescaped.count(text) == 5 + 2 + 7 + 2 + 1  # texts, items, table, picture, title
    notes = as_markdown(blocks(text))
    assert notes.replace("\\", "").count(text) == 5 + 2 + 7 + 1
    assert not re.search(r"(?<!\\)[<`]", notes) and "](plots/a_b.png)" in notes


@pytest.mark.parametrize(
    ("text", "escaped"),
    [("- a", r"\- a"), ("+ a", r"\+ a"), ("12. a", r"12\. a"), ("1) a", r"1\) a"), ("---", r"\---")]
    + [(text, text) for text in ("-0.5 to 1", "1.5 a", "+1", "a - b")],
)
def test_what_begins_a_list_or_a_rule_in_markdown_is_text(text, escaped):
    assert as_markdown([Text("p", text), Items([text])]) == f"{escaped}\n\n- {escaped}\n"


def test_the_policy_allows_the_documents_own_style_and_pictures_and_nothing_else():
    page = as_html("plain", blocks("plain"))
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert dict(rule.split(" ", 1) for rule in policy.split("; ")) == {
        "default-src": "'none'",
        "style-src": f"'sha256-{digest}'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert "<script" not in page


def test_an_interval_is_not_broken_over_lines():
    page = as_html("", [Table("", ("",), [("0.5 (0.1 to 0.9)", "-0.5 (-1.0 to +0.1), once to twice")])])
    assert "0.5 (0.1\u00a0to\u00a00.9)" in page and "(-1.0\u00a0to\u00a0+0.1), once to twice" in page


def test_the_pages_have_one_theme():
    theme = (TEMPLATES / "base.css").read_text()
    review = render({"run": "mvp", "settings": {}}, []).decode()
    assert theme in as_html("", []) and theme in review
    for name in ("document.css", "review.css"):
        assert "light-dark(" not in (TEMPLATES / name).read_text()  # no colours of its own


def test_what_does_not_show_is_a_token_in_every_place():
    hides = "a\u202e<b>\x1b[2J\n👩‍🚀 می\u200cخواهم"
    shown = (
        'a<span class="ctrl">\\u202e</span>&lt;b&gt;<span class="ctrl">\\x1b</span>[2J\n👩‍🚀 می\u200cخواهم'
    )
    page = as_html("", [Text("p", hides), Items([hides]), Table(hides, (hides,), [(hides, hides)])])
    assert page.count(shown) == 6 and "\u202e" not in page and "\x1b" not in page
    text = as_markdown([Text("p", hides), Items([hides]), Table(hides, (hides,), [(hides, hides)])])
    assert text.count("\\\\u202e") == 6 and "\u202e" not in text and "\x1b" not in text
