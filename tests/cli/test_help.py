"""Help is quick because nothing heavy is imported, and every verb shows an example."""

import subprocess
import sys
import time

import pytest

from mote.cli import run

VERBS = (
    "pipeline",
    "assemble",
    "train",
    "extract",
    "start",
    "upcycle",
    "pack",
    "quantize",
    "evaluate",
    "ask",
    "info",
    "plan",
    "verify",
)


def test_help_imports_nothing_heavy_and_is_quick() -> None:
    program = (
        "import sys, time; start = time.perf_counter()\n"
        "from mote.cli import run; code = run(['--help'])\n"
        "spent = time.perf_counter() - start\n"
        "heavy = [m for m in ('torch', 'transformers', 'numpy', 'PIL', 'rich') if m in sys.modules]\n"
        "print(code, heavy, spent, file=sys.stderr)\n"
    )
    start = time.perf_counter()
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
    outside = time.perf_counter() - start
    code, heavy, spent = done.stderr.strip().split(" ", 2)[0], "[]" in done.stderr, done.stderr.split()[-1]
    assert (code, heavy) == ("0", True), done.stderr
    assert float(spent) < 1.0, f"{spent} s inside, {outside:.2f} s with the interpreter; alone it takes 0.1 s"
    for verb in (*VERBS, "data", "export"):
        assert verb in done.stdout


@pytest.mark.parametrize("verb", [*VERBS, "data validate", "data draw", "export gguf", "export hf"])
def test_every_verb_has_help_with_an_example_within_100_columns(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run([*verb.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Example: mote {verb}" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 100
    assert "--debug" in text


def test_no_argument_is_help_and_version_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from mote import __version__

    assert run([]) == 0
    assert "Usage: mote" in capsys.readouterr().out
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"mote {__version__}\n"
