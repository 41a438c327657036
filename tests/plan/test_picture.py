"""The picture is drawn, whole, and says what it shows."""

from pathlib import Path

import pytest

from mote.errors import PlanError
from mote.plan.choice import Choice
from mote.plan.measure import Use
from mote.plan.picture import draw
from mote.plan.skeleton import Skeleton
from mote.plan.survey import survey


def test_a_picture_names_plans_peers_and_budget(skeleton: Skeleton, tmp_path: Path) -> None:
    found = survey(skeleton, Choice(), Use(), budget="2MiB", on="file", devices=["laptop-8gb"])
    path = tmp_path / "new" / "plan.svg"
    draw(found, path, rows=3)
    drawn = path.read_text(encoding="utf-8")
    for text in ("MoE-LLaVA, 4 experts INT3", "budget, 2MiB", "GiB of weight files", "shared INT4"):
        assert f"<!-- {text} -->" in drawn or text in drawn
    assert found.found is not None
    assert f"1  {found.found.plans[0].choice.title()}" in drawn
    again = tmp_path / "again.svg"
    draw(found, again, rows=3)
    assert again.read_bytes() == path.read_bytes()


def test_another_ending_is_refused(skeleton: Skeleton, tmp_path: Path) -> None:
    found = survey(skeleton, Choice(), Use(), devices=["laptop-8gb"])
    with pytest.raises(PlanError, match=r"\.svg or \.png"):
        draw(found, tmp_path / "plan.jpeg")
