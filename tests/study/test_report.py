"""The pieces of the report: figures that follow the page's colours, a page that cannot be broken by an answer."""

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mote.errors import DataError
from mote.study import figures
from mote.study.page import card, page, table
from mote.study.report import _json, _rows

SCORES = {
    name: {skill: {"value": v, "low": max(0.0, v - 0.1), "high": min(1.0, v + 0.1)} for skill in ("naming", "average")}
    for name, v in (("blind", 0.0), ("dense", 0.5), ("packed", 1.0))
}


def check_svg(svg: str) -> None:
    assert svg.startswith("<svg")
    assert svg.rstrip().endswith("</svg>")
    assert "currentColor" in svg
    assert figures.INK not in svg
    opening = svg[: svg.index(">")]
    assert "viewBox" in opening
    assert not re.search(r"\s(width|height)=", opening)


def test_figures_take_the_pages_colour_and_width() -> None:
    check_svg(figures.accuracy(SCORES))
    check_svg(figures.sizes([("dense", {"shared": 10}), ("packed", {"shared": 10, "routed": 5})]))
    check_svg(figures.losses({"align": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}], "experts": []}))
    rows = [{"layer": i, "load_image": [1.0, 3.0], "load_text": [0.0, 0.0]} for i in range(3)]
    check_svg(figures.routing(rows))


def test_the_same_figure_has_the_same_bytes() -> None:
    assert figures.accuracy(SCORES) == figures.accuracy(SCORES)


def test_an_answer_cannot_break_the_page(tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    Image.new("RGB", (4, 4)).save(picture)
    text = card(picture, "<b>?", '<script>alert("x")</script>', "a & b", right=False)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "a &amp; b" in text
    assert "wrong" in text
    whole = page("t<", [text, table(("a",), [("1",)])])
    assert whole.startswith("<!doctype html>")
    assert "<title>t&lt;</title>" in whole
    assert not re.search(r'(src|href)="(?!data:)', whole)


@pytest.mark.parametrize("read", [_json, _rows])
def test_a_damaged_log_is_named(tmp_path: Path, read: Any) -> None:
    broken = tmp_path / "result.json"
    broken.write_text("{")
    with pytest.raises(DataError, match=r"result\.json: cannot be used for the report"):
        read(broken)
    assert _rows(tmp_path / "absent.jsonl") == []
