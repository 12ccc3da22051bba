"""A page of edits to look through: one file beside the pictures, no links out of its folder."""

import html
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from string import Template
from urllib.parse import quote

from ...core.files import write_file
from ...core.reward import PERSPECTIVES
from ...core.tables import Table
from .items import TYPES

TEMPLATE = Template((Path(__file__).parent / "gallery.html").read_text())


@dataclass(frozen=True)
class Card:
    """A source and its edits, each as caption, path relative to the page, and reward (None: not judged)."""

    name: str
    type: str
    instruction: str
    source: str
    edits: list[tuple[str, str, dict | None]]

    @classmethod
    def of(cls, record: dict, edits: list[tuple[str, str, dict | None]]) -> "Card":
        return cls(record["name"], record["type"], record["instruction"], record["source"], edits)


def write_gallery(out: Path, title: str, tables: list[Table], cards: list[Card]) -> None:
    """Write `out/index.html`; the cards can be filtered by edit type and score."""
    types = [kind for kind in TYPES if any(card.type == kind for card in cards)]
    page = TEMPLATE.substitute(
        title=html.escape(title),
        tables="".join(table.html() for table in tables),
        types=options(types),
        perspectives=options(PERSPECTIVES),
        scores=options(range(6)),
        columns=max(1 + len(card.edits) for card in cards),
        judged="" if any(reward for card in cards for *_, reward in card.edits) else "hidden",
        cards="".join(card_html(card) for card in cards),
    )
    write_file(out / "index.html", page.encode(errors="replace"))  # halves of surrogate pairs, from a run or a path


def options(values: Iterable[object]) -> str:
    return "".join(f"<option>{html.escape(str(value))}</option>" for value in values)


def card_html(card: Card) -> str:
    scores = ""
    for i, perspective in enumerate(PERSPECTIVES):
        values = [reward["scores"][i] for *_, reward in card.edits if reward]
        words = " ".join("failed" if score is None else str(score) for score in values)
        scores += f' data-{perspective}="{html.escape(words)}"'
    figures = figure("source", card.source) + "".join(
        figure(caption, path, reward_html(reward)) for caption, path, reward in card.edits
    )
    return (
        f'<article data-type="{html.escape(card.type)}"{scores}><h3>{html.escape(card.instruction)}</h3>'
        f"<p>{html.escape(card.type)}, {html.escape(card.name)}</p>{figures}</article>\n"
    )


def figure(caption: str, path: str, below: str = "") -> str:
    return (
        f'<figure><img loading="lazy" src="{html.escape(quote(path))}" alt="{html.escape(caption)}">'
        f"<figcaption>{html.escape(caption)}{below}</figcaption></figure>"
    )


def reward_html(reward: dict | None) -> str:
    if not reward:
        return ""
    parts = zip(PERSPECTIVES, *(reward[key] for key in ("scores", "verdicts", "texts", "failures")), strict=True)
    return "<dl>" + "".join(
        f"<dt>{perspective}: {'unusable' if score is None else f'{score:g}, ' + ('yes' if verdict else 'no')}</dt>"
        f"<dd>{html.escape(str(failure if score is None else text))}</dd>"
        for perspective, score, verdict, text, failure in parts
    ) + "</dl>"  # fmt: skip
