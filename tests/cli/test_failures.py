"""Every failure is one line on stderr and an exit code that says whose it is."""

import errno
import warnings
from pathlib import Path

import pytest
import typer

from mote.cli import main, run
from mote.cli.failures import report, warnings_in_one_line
from mote.errors import CheckpointError


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("\n")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (CheckpointError("a\nb: truncated; copy it again"), 1, "error: a b: truncated; copy it again"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (typer.Abort(), 130, "interrupted"),
        (
            ZeroDivisionError("division by zero"),
            2,
            "error: ZeroDivisionError: division by zero; a defect of mote",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "x/y"),
            1,
            "error: x/y: No space left on device; free",
        ),
        (typer.BadParameter("no"), 2, "error: "),
    ],
)
def test_report(error: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(error) == code
    assert one_line(capsys).startswith(text)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["nonsense"], 2, "error: No such command 'nonsense'"),
        (["ask"], 2, "error: Missing argument"),
        (["data", "validate", "--what"], 2, "error: No such option"),
        (["pipeline", "none.yaml"], 1, "error: none.yaml: cannot read this recipe: No such file"),
        (["info", "no/checkpoint"], 1, "error: no/checkpoint"),
    ],
)
def test_verbs_fail_in_one_line(
    arguments: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == code
    assert one_line(capsys).startswith(text)


def test_main_exits_with_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["nonsense"])
    assert caught.value.code == 2
    one_line(capsys)


def test_warnings_are_one_line_and_those_for_developers_are_silent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings_in_one_line()
        warnings.warn("small\nmodel", UserWarning, stacklevel=1)
        warnings.warn("old name", FutureWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: small model\n"
