"""The small pieces every view is made of. All of them escape what they are given, except `Html` made here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from qlora_studio.core import words
from qlora_studio.ui.fields import in_labels


class Html(str):
    """Text that is HTML already."""


def text(value: object) -> Html:
    """Any value as HTML text; what is HTML already stays."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def join(parts: Iterable[object]) -> Html:
    return Html("".join(text(part) for part in parts))


def tag(name: str, *content: object, **attributes: object) -> Html:
    """One element. `class_` writes `class`, `aria_label` writes `aria-label`; an attribute of None is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{written}>{join(content)}</{name}>")


def number(value: object) -> Html:
    """A figure in the fixed-width face."""
    return tag("span", value, class_="qs-number")


def page_head(title: str, description: str) -> Html:
    return tag("div", tag("h2", title), tag("p", description), class_="qs-head")


def card(title: object, *content: object, aside: object = "", label: str | None = None, kind: str = "") -> Html:
    """A framed part of a page with its title on the left and `aside` on the right."""
    header = tag("header", tag("b", title), tag("span", aside, class_="qs-aside")) if title or aside else ""
    return tag("section", header, *content, class_=f"qs-card {kind}".strip(), aria_label=label)


def chip(word: str, kind: str = "") -> Html:
    """A word in a coloured pill; `kind` is good, bad, warn or plain."""
    return tag("span", word, class_=f"qs-chip {kind}".strip())


def bar(share: float, label: str, kind: str = "") -> Html:
    """A bar that is `share` full, 0 to 1."""
    percent = 100 * min(1.0, max(0.0, share))
    filled = tag("i", style=f"width:{percent:.1f}%")
    return tag(
        "div",
        filled,
        class_=f"qs-bar {kind}".strip(),
        role="progressbar",
        aria_label=label,
        aria_valuemin=0,
        aria_valuemax=100,
        aria_valuenow=f"{percent:.0f}",
    )


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure with a word above and a line below."""

    name: str
    figure: str
    detail: str = ""
    kind: str = ""


def tiles(items: Sequence[Tile]) -> Html:
    return tag(
        "div",
        *(
            tag(
                "div",
                tag("small", item.name),
                tag("b", item.figure, class_="qs-number"),
                tag("span", item.detail),
                class_=f"qs-card {item.kind}",
            )
            for item in items
        ),
        class_="qs-tiles",
    )


def empty(title: str, hint: str) -> Html:
    """What stands where nothing is yet: what is missing, and what to do next."""
    return tag("section", tag("b", title), tag("p", hint), class_="qs-card qs-empty")


def bullets(items: Iterable[object], kind: str = "") -> Html:
    return tag("ul", *(tag("li", item) for item in items), class_=f"qs-bullets {kind}".strip())


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], label: str) -> Html:
    head = tag("tr", *(tag("th", heading, scope="col") for heading in headings))
    body = join(tag("tr", *(tag("td", cell) for cell in row)) for row in rows)
    return tag("div", tag("table", tag("thead", head), tag("tbody", body), aria_label=label), class_="qs-table")


def more(title: str, *content: object) -> Html:
    """Something that opens on a click."""
    return tag("details", tag("summary", title), *content, class_="qs-more")


def error_card(problems: Sequence[str], title: str = "This does not work") -> Html:
    """What stands against something, in the page's words for every setting."""
    sentences = [problem if isinstance(problem, Html) else in_labels(problem) for problem in problems]
    return tag("section", tag("b", title), bullets(sentences), class_="qs-card qs-error", role="alert")


def gib(size: float) -> str:
    """`6.9 GiB`, or `512 MiB` below one: one digit is enough on a page."""
    return words.gib(size, 1)


def gib_of(part: float, whole: float) -> str:
    """`1.2 of 4.0 GiB`: one unit on both sides."""
    return words.gib_of(part, whole)


def big_of(part: float, whole: float, what: str = "") -> Html:
    """The same as a large figure with the rest beside it."""
    figure, _, rest = words.gib_of(part, whole).partition(" ")
    return tag("div", number(figure), tag("small", f" {rest} {what}".rstrip()), class_="qs-big")


def count(value: int) -> str:
    """`3 912`: thousands apart, with a space that does not break."""
    return f"{value:,}".replace(",", "\u202f")


def short_count(value: float) -> str:
    """`812`, `1.9k`, `1.02 M`."""
    if value >= 1e6:
        return f"{value / 1e6:.2f} M"
    return f"{value / 1e3:.1f}k" if value >= 1e4 else count(round(value))


def plural(value: int, word: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{count(value)} {word}" if value == 1 else f"{count(value)} {word}s"
