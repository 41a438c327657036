"""`mote plan` on the command line."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mote.cli import run


def test_json_has_both_accountings_and_nothing_heavy_is_imported() -> None:
    program = (
        "import sys\nfrom mote.cli import run\n"
        "code = run(['plan', '--model', 'qwen2.5-3b', '--experts', '4', '--shared', 'int4', '--codec', '2bit',\n"
        "            '--device', 'laptop-8gb', '--budget', '3.4GiB', '--json'])\n"
        "heavy = [m for m in ('torch', 'transformers', 'numpy', 'matplotlib') if m in sys.modules]\n"
        "print(code, heavy, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=True)
    assert done.stderr.strip() == "0 []"
    found = json.loads(done.stdout)
    assert round(found["paper_gib"], 2) == 3.40
    assert found["file_bytes"] > found["ffn_bytes"] > 3.4 * 2**30
    assert {plan["experts"] for plan in found["budget"]["plans"]} == {4}


@pytest.mark.parametrize(
    "options",
    [
        ["--model", "qwen2.5-3b", "--device", "raspberry-pi-5-4gb", "--device", "phone-8gb"],
        ["--model", "qwen2.5-14b", "--budget", "40GiB", "--on", "resident", "--device", "desktop-32gb"],
        ["--model", "smollm2-135m", "--kind", "dense", "--shared", "int4", "--device", "laptop-8gb"],
        ["--model", "qwen3-0.6b", "--kind", "moe-llava", "--placement", "sparse", "--device", "laptop-8gb"],
    ],
)
def test_text_fits_100_columns(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", *options]) == 0
    text = capsys.readouterr().out
    assert "paper" in text
    assert max(map(len, text.splitlines())) <= 100


def test_what_was_asked_for_is_not_searched(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "qwen2.5-0.5b", "--budget", "1.7GiB", "--on", "file", "--head", "int4", "--shared", "int8"]
    assert run(["plan", *options, "--device", "laptop-8gb", "--json"]) == 0
    plans = json.loads(capsys.readouterr().out)["budget"]["plans"]
    assert len({plan["experts"] for plan in plans}) > 1
    assert {(plan["head"], plan["shared"]) for plan in plans} == {("int4", "int8")}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "qwen2.5-3"], "did you mean"),
        (["--model", "qwen2.5-3b", "--kind", "dense", "--experts", "8"], "a dense model has no experts"),
        (["--model", "qwen2.5-3b", "--experts-format", "int4", "--codec", "2bit"], "codec=2bit is for ternary experts"),
        (["--model", "qwen2.5-3b", "--budget", "1MiB"], "the smallest plan of qwen2.5-3b takes 1.020 GiB: 1 x 1.6 bit"),
        (["--model", "qwen2.5-3b", "--budget", "much"], "is no size"),
        (["--model", "qwen2.5-3b", "--shared", "int5"], "shared='int5' is unknown"),
        (["--model", "qwen2.5-3b", "--kind", "moe"], "kind='moe' is unknown"),
        (["--model", "qwen2.5-3b", "--device", "toaster"], "device 'toaster' is unknown"),
        (["--model", "qwen2.5-3b", "--placement", "odd"], "placement='odd' is unknown"),
        (["--model", "qwen2.5-3b", "--placement", "explicit"], "use one of dense, sparse, first_half, second_half\n"),
        (["--model", "smollm2-135m", "--budget", "0.001GiB"], "nothing fits 0.001GiB (paper)"),
        (["--model", "qwen2.5-0.5b", "--image-size", "10"], "10 pixels is smaller than a patch of 14"),
        (["--model", "qwen2.5-3b", "--kv", "int8"], "kv='int8' is unknown"),
        (["--model", "qwen2.5-3b", "--context", "99999"], "32768 positions"),
        (["--model", "qwen2.5-0.5b", "--plot", "x.pdf"], ".svg or .png"),
    ],
)
def test_bad_input_is_one_line(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = options if "--device" in options else [*options, "--device", "laptop-8gb"]
    assert run(["plan", *given]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_info_says_what_the_plan_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], checkpoint: Path) -> None:
    assert run(["plan", "--model", str(checkpoint), "--kind", "dense", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert run(["info", str(checkpoint), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for key in ("paper_gib", "ffn_bytes"):
        assert found[key] == planned[key]
    assert found["file_bytes"] == pytest.approx(planned["file_bytes"], rel=0.01)
    assert (found["context"], found["resident"]) == (planned["context"], planned["resident"])
    assert run(["info", str(checkpoint)]) == 0
    said = capsys.readouterr()
    assert "in the paper's accounting" in said.out
    assert said.err == ""


def test_info_warns_of_what_does_not_fit(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mote.checkpoint.resident.available_memory", lambda: 1 << 20)
    assert run(["info", str(checkpoint), "--json"]) == 0
    said = capsys.readouterr()
    json.loads(said.out)
    assert "0.00 GiB are free" in said.err
    assert said.err.count("\n") == 1


def test_the_page_shows_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    shown = re.findall(
        r"^```\n\$ mote (plan [^\n]*)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert shown
    for command, printed in shown:
        failed = run(command.split())
        said = capsys.readouterr()
        if failed:  # one line, which the page wraps
            assert said.err.split() == printed.split(), command
        else:
            assert said.out == printed, command


PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "fit-a-budget.md"
EXAMPLES = re.findall(r"^```\n(mote plan .*)\n```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("line", EXAMPLES)
def test_examples_of_the_how_to_run_as_pasted(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(line.partition("|")[0])
    if (place := next((word for word in words if word.startswith("runs/")), None)) and not Path(place).exists():
        pytest.skip("make demo has not run here")
    monkeypatch.chdir(tmp_path if not place else Path.cwd())
    assert run(words[1:]) == 0
    assert "paper" in capsys.readouterr().out
    assert "--plot" not in words or (tmp_path / words[-1]).stat().st_size > 1000
