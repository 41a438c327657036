"""The report's page: one HTML file that needs nothing else, readable light and dark."""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --soft: #5b6470; --paper: #fff; --card: #f5f6f8; --line: #dfe3e8;
  --good: #00734f; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #a2abb6; --paper: #14171c; --card: #1e232a;
  --line: #343b45; --good: #4fd1a5; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.8rem; margin: 0 0 .25rem; line-height: 1.2; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line); }
p { margin: .5rem 0; } .soft, figcaption { color: var(--soft); } figcaption { font-size: .875rem; }
figure { margin: 1rem 0; overflow-x: auto; } figure svg { width: 100%; min-width: 34rem; height: auto; display: block; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; margin: .75rem 0; }
th, td { padding: .3rem .8rem .3rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; } td small { color: var(--soft); }
td { font-variant-numeric: tabular-nums; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .75rem; margin: 1.25rem 0; }
.facts div { background: var(--card); border-radius: .5rem; padding: .75rem 1rem; }
.facts b { display: block; font-size: 1.4rem; line-height: 1.2; } .facts span { color: var(--soft); font-size: .85rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: 1rem; margin: 1rem 0; }
.card { background: var(--card); border-radius: .5rem; padding: .75rem; font-size: .9rem; }
.card img { width: 100%; aspect-ratio: 1; object-fit: contain; background: #fff; border-radius: .25rem;
  display: block; margin-bottom: .5rem; }
.card p { margin: .2rem 0; overflow-wrap: anywhere; } .right { color: var(--good); } .wrong { color: var(--bad); }
pre { background: var(--card); border-radius: .5rem; padding: .75rem 1rem; overflow-x: auto; font-size: .85rem; }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
"""


def text(value: object) -> str:
    """`value` as text that is safe between tags and in attributes."""
    return html.escape(str(value), quote=True)


def page(title: str, parts: Iterable[str]) -> str:
    """A whole HTML document."""
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def figure(svg: str, caption: str) -> str:
    """A figure with its caption; the caption is also what a screen reader says."""
    labelled = svg.replace("<svg", f'<svg role="img" aria-label="{text(caption)}"', 1)
    return f"<figure>{labelled}<figcaption>{text(caption)}</figcaption></figure>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already; the first column is flush left."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def facts(items: Iterable[tuple[str, str]]) -> str:
    """Big figures: (figure, what it is)."""
    return '<div class="facts">' + "".join(
        f"<div><b>{text(number)}</b><span>{text(what)}</span></div>" for number, what in items
    ) + "</div>"  # fmt: skip


def card(picture: Path, question: str, given: str, expected: str, *, right: bool) -> str:
    """A picture with the question, the answer given and the answer expected."""
    data = base64.b64encode(picture.read_bytes()).decode("ascii")
    mark, kind = ("right", "right") if right else ("wrong", "wrong")
    return (
        f'<div class="card"><img alt="" src="data:image/png;base64,{data}"><p>{text(question)}</p>'
        f'<p>Given: <b class="{kind}">{text(given or "(nothing)")}</b> <span class="soft">({mark})</span></p>'
        f"<p>Expected: <b>{text(expected)}</b></p></div>"
    )


def definitions(items: Iterable[tuple[str, object]]) -> str:
    """A list of names and values."""
    return "<dl>" + "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in items) + "</dl>"
