import html
import json
import re
from urllib.parse import unquote, urlsplit

import pytest
from PIL import Image

from mrc_edit.bench.real_edit.gallery import Card, write_gallery
from mrc_edit.core.tables import Table

EVIL = "<script>document.title = 'run'</script>\" onerror=\"document.title='run'"


def reward(*scores):
    return {
        "scores": scores,
        "verdicts": [None if score is None else score >= 4 for score in scores],
        "texts": [None if score is None else EVIL for score in scores],
        "failures": [EVIL if score is None else None for score in scores],
    }


@pytest.fixture
def page(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    cards = [
        Card(f"{name}-{EVIL}", kind, EVIL, "a.png", [("edit", "a.png", reward(*scores))])
        for name, kind, scores in (
            ("one", "local", (5, 4, 3)),
            ("two", "local", (0, 5, None)),
            ("three", "style", (2, 2, 2)),
            ("four", "style", (None, None, None)),
        )
    ]
    write_gallery(tmp_path, EVIL, [Table(EVIL, [EVIL], [[EVIL]])], cards)
    return tmp_path / "index.html"


CASES = [
    ({}, ["one", "two", "three", "four"]),
    ({"type": "style"}, ["three", "four"]),
    ({"perspective": "following", "least": 2}, ["one", "three"]),
    ({"perspective": "quality", "most": 2}, ["three"]),
    ({"least": 0, "most": 0}, ["two"]),
    ({"type": "local", "perspective": "preserving", "least": 5}, ["two"]),
    ({"failed": True}, ["two", "four"]),
    ({"failed": True, "perspective": "following"}, ["four"]),
    ({"type": "local", "perspective": "quality", "least": 4}, []),
]


def test_the_filter_in_a_browser(page, browser):
    steps = """
    const found = CASES.map(values => {
      form.reset()
      for (const [name, value] of Object.entries(values))
        form.elements[name][name === "failed" ? "checked" : "value"] = value
      form.dispatchEvent(new Event("input", {bubbles: true}))
      const seen = cards.filter(card => card.checkVisibility())
      return [form.querySelector("output").textContent, seen.map(card => card.querySelector("p").textContent)]
    })
    document.body.dataset.found = JSON.stringify(found)"""
    dom = browser(page, steps.replace("CASES", json.dumps([values for values, _ in CASES])))
    found = json.loads(html.unescape(re.search(r'data-found="([^"]*)"', dom)[1]))
    for (values, names), (count, shown) in zip(CASES, found, strict=True):
        assert [re.search(r", (\w+)-", text)[1] for text in shown] == names, values
        assert count == f"{len(names)} of 4"


def test_texts_are_shown_and_never_run(page, browser):
    dom = browser(page, "")
    assert "<title>run</title>" not in dom and "onerror=&quot;" in page.read_text()
    assert "unusable: " not in dom and dom.count("unusable<") == 4


def test_nothing_of_a_card_leaves_its_place(tmp_path):
    """Type and paths too, which a run from somebody else may choose."""
    card = Card(EVIL, f"local{EVIL}", "a \ud83d", f"a{EVIL}.png", [(EVIL, "b.png", reward(5, 4, None))])
    write_gallery(tmp_path, "t", [], [card])
    text = (tmp_path / "index.html").read_text()
    assert "<script>document" not in text and 'onerror="' not in text and "a ?" in text


def test_pictures_with_special_names_are_found(tmp_path):
    names = ["a#b.png", "a?b=c.png", "100%.png", "a%20b.png", 'a"b.png', "a&amp;b.png", "ä b.png", "edits/é#1.png"]
    write_gallery(tmp_path, "t", [], [Card("x", "local", "y", name, []) for name in names])
    links = re.findall(r'<img[^>]* src="([^"]*)"', (tmp_path / "index.html").read_text())
    parts = [urlsplit(html.unescape(link)) for link in links]
    assert [unquote(part.path) for part in parts] == names and not any(part.query or part.fragment for part in parts)


def test_the_page_needs_nothing_from_outside(page):
    text = page.read_text()
    assert "http" not in text and "//" not in text
    assert set(re.findall(r'<img[^>]* src="([^"]*)"', text)) == {"a.png"}
