"""A page that is one file: style, drawings and tables inside, nothing asked of the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class Section:
    """A part of a page: its heading, a sentence under it, and markup."""

    title: str
    lead: str
    body: str


@cache
def _style() -> str:
    return resource(__package__, "page.css")


def resource(package: str, name: str) -> str:
    """A text file that lies in a package."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


@cache
def template(package: str, name: str) -> Template:
    """A report's template: everything is escaped, and a name it does not get is an error."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(resource(package, name))


def page(title: str, lead: str, sections: Sequence[Section], foot: str) -> str:
    """A whole page.

    Args:
        title: what it is.
        lead: of what, when.
        sections: in order; ``body`` is markup already, all other texts are escaped here.
        foot: how it was made.
    """
    parts = "\n".join(
        f"<section>\n<h2>{escape(each.title)}</h2>\n{_lead(each.lead)}{each.body}\n</section>"
        for each in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)} · modalign</title>\n<style>{_style()}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(title)}</h1><p>{escape(lead)}</p></header>\n<main>\n{parts}\n</main>\n"
        f"<footer>{escape(foot)}</footer>\n</body>\n</html>\n"
    )


def _lead(words: str) -> str:
    return f'<p class="lead">{escape(words)}</p>\n' if words else ""


def advice(name: str, sentences: Sequence[str]) -> str:
    """The answer in a box: a few large words, and sentences under them."""
    said = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    return f'<div class="card advice"><p class="name">{escape(name)}</p>{said}</div>'


def figure(caption: str, drawing: str) -> str:
    """A drawing with its caption, in a card."""
    label = escape(caption, quote=True)
    return (
        f'<figure class="card"><figcaption>{escape(caption)}</figcaption>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{drawing}</div></figure>'
    )


def bullets(sentences: Sequence[str]) -> str:
    """Sentences as a list, in a card."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<div class="card"><ul>{items}</ul></div>'


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    chosen: Sequence[int] = (),
    label: str = "Numbers",
) -> str:
    """A table of texts, in a card.

    Args:
        headers: of the columns.
        rows: from top to bottom.
        chosen: numbers of rows to be marked.
        label: what it holds, for readers who do not see it; each table of a page its own.
    """
    head = "".join(f'<th scope="col">{escape(header)}</th>' for header in headers)
    body = "".join(
        ('<tr class="chosen">' if number in chosen else "<tr>")
        + "".join(f"<td>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for number, row in enumerate(rows)
    )
    return (
        f'<div class="card scroll" tabindex="0" role="region" aria-label="{escape(label, quote=True)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
