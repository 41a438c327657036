"""The documentation holds together: links lead somewhere, and figures come from a report."""

import importlib.util
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")
CODE = re.compile(r"^```.*?^```|^ {4}.*?$", re.DOTALL | re.MULTILINE)
MARKED = "<!-- figures: filled from runs/small/report.json -->\n<!-- end of figures -->"


def anchors(page: Path) -> set[str]:
    """Names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(text: str) -> list[list[str]]:
    """The arguments of every `mote` command in the code of a page, shell variables put in."""
    code = "\n".join(match.group() for match in CODE.finditer(text)).replace("\\\n", " ")
    variables = dict(re.findall(r"^\s*([A-Z])=(\S+)$", code, re.MULTILINE))
    found = []
    for line in re.findall(r"^\s*(?:\$ )?(?:\.venv/bin/)?mote ([a-z].*)$", code, re.MULTILINE):
        words = shlex.split(re.sub(r"\$([A-Z])", lambda match: variables[match[1]], line), comments=True)
        found.append(words[: words.index("|")] if "|" in words else words)
    return found


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The verb of a command line, and its own arguments."""
    import typer

    from mote.cli.app import app

    command: Any = typer.main.get_command(app)
    while hasattr(command, "resolve_command"):
        _, command, words = command.resolve_command(command.context_class(command), words)
    return command, list(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_have_the_options_and_settings_that_there_are(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import typer

    from mote.cli import experiment, run, settings

    def only(resolve: Callable[..., object]) -> Callable[..., None]:
        def and_no_more(*arguments: Any) -> None:
            resolve(*arguments)
            raise typer.Exit(0)

        return and_no_more

    for module, name in ((settings, "resolve"), (experiment, "read_experiment")):
        monkeypatch.setattr(module, name, only(getattr(module, name)))
    monkeypatch.chdir(ROOT)
    for words in commands(page.read_text(encoding="utf-8")):
        command, rest = command_of(words)
        given, left, _ = command.make_parser(command.context_class(command)).parse_args(rest)
        missing = [item.name for item in command.params if item.required and not given.get(item.name)]
        assert not [*left, *missing], words
        if {"set_", "recipe"} & given.keys():
            assert run(words) == 0, (words, capsys.readouterr().err)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_running_text_names_options_that_there_are(page: Path) -> None:
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    for line in re.findall(r"`mote ([a-z][^`]* --[^`]*)`", text):
        command, rest = command_of(shlex.split(line))
        there = {option for item in command.params for option in (*item.opts, *item.secondary_opts)}
        assert {word for word in rest if word.startswith("--")} <= there, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        place = (page.parent / target).resolve() if target else page
        assert place.exists(), f"{target} is not there"
        assert not anchor or anchor in anchors(place), f"{target} has no heading #{anchor}"


@pytest.fixture
def figures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mote_doc_figures", ROOT / "docs" / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A README with one region, and the report that it names."""
    score = {"value": 0.817, "n": 300, "low": 0.769, "high": 0.856}
    series = {name: {"naming": score, "average": score} for name in ("blind", "dense", "mote", "packed")}
    sizes = {"dense_ffn": 1000, "moe_llava_experts": 4000, "mote_experts": 5000, "mote_experts_packed": 1430}
    environment = {"cpu": {"model": "Some CPU"}, "cores": 2, "git": "0123456789abcdef"}
    provenance = {"command": "mote pipeline recipes/small.yaml", "seed": 0, "environment": environment}
    report = {"accuracy": series, "bytes": sizes, "seconds": {"data": 60.0, "pack": 30.0}, "provenance": provenance}
    (tmp_path / "runs" / "small").mkdir(parents=True)
    (tmp_path / "docs" / "images").mkdir(parents=True)
    (tmp_path / "runs" / "small" / "report.json").write_text(json.dumps(report))
    (tmp_path / "README.md").write_text(f"before\n{MARKED}\nafter\n")
    return tmp_path


def test_figures_are_filled_from_the_report_and_checked(
    figures: ModuleType, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, report = repository / "README.md", repository / "runs" / "small" / "report.json"
    assert figures.main(["--check"], repository) == 1
    assert page.read_text() == f"before\n{MARKED}\nafter\n", "a check changes nothing"
    assert figures.main([], repository) == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- figures")
    assert text.endswith("<!-- end of figures -->\nafter\n")
    assert "| naming | 300 | 81.7 (76.9 to 85.6) |" in text
    assert "| 1,430 | 1.43 |" in text
    assert "(Some CPU), commit 0123456789ab" in text
    assert (repository / "docs" / "images" / "small-accuracy.svg").read_text().startswith("<svg")
    assert figures.main(["--check"], repository) == 0
    assert figures.main([], repository) == 0
    assert page.read_text() == text, "filling again changes nothing"

    report.write_text(report.read_text().replace("1430", "1500"))
    assert figures.main(["--check"], repository) == 1
    assert "python docs/figures.py" in capsys.readouterr().out


def test_a_region_may_name_one_of_several_tables(figures: ModuleType, repository: Path) -> None:
    plain = {"model": "base", "symmetric": True, "calibration": "", "precision": "fp32"}
    rows = [
        {**plain, "method": "none", "bits": 0, "perplexity": {"value": 14.471, "low": 13.24, "high": 15.74}},
        {**plain, "method": "rtn", "bits": 2, "perplexity": {"value": 1.234e7, "low": 1e7, "high": 2e7}},
    ]
    zero = {"method": "gptq", "symmetric": False, "calibration": "mix", "bits": 4}
    rows.append({**plain, **zero, "perplexity": {"value": 16.1, "low": 15.0, "high": 17.0}})
    rows.append({**plain, "model": "qwen0.5b", "precision": "bf16", "method": "none", "bits": 0})
    rows[-1]["perplexity"] = {"value": 10.6, "low": 9.8, "high": 11.5}
    rows[1]["excess"] = {"value": 13.5, "low": 13.25, "high": 13.75}
    (repository / "ptq.json").write_text(json.dumps({"rows": rows[::-1]}))
    page, region = (
        repository / "docs" / "page.md",
        "<!-- figures: filled from ptq.json as {} -->\n<!-- end of figures -->\n",
    )
    page.write_text(region.format("quantized") + region.format("perplexities"))
    assert figures.main([], repository) == 0
    text = page.read_text()
    lines = (
        "| 16 | none | 14.47 (13.24 to 15.74) |  |  |\n| 4 | GPTQ, zero points (mix) | 16.10 (15.00 to 17.00) |  |  |\n"
    )
    assert f"{lines}| 2 | RTN | 1e7 | 13.500 (13.250 to 13.750) |  |\n" in text
    assert "**Qwen2.5-Coder-0.5B-Instruct**, forward passes in bf16:\n" in text
    assert "| SmolLM2-135M (14.47) | 2 | 1e7 |  |  |  |\n" in text
    assert figures.main(["--check"], repository) == 0
    page.write_text(region.format("nothing"))
    with pytest.raises(SystemExit, match="no table 'nothing'; use one of scores"):
        figures.main([], repository)


def test_a_report_that_is_missing_is_named(
    figures: ModuleType, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / "runs" / "small" / "report.json").unlink()
    assert figures.main([], repository) == 1
    assert "runs/small/report.json is not there" in capsys.readouterr().out


def test_the_published_figures_are_those_of_the_reports(
    figures: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert figures.main(["--check"]) == 0, capsys.readouterr().out
