"""Whole or not at all: directories and files under real errors, kills, left-overs and full disks."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mote.checkpoint import atomic
from mote.checkpoint.atomic import check_space, check_target, check_writable, new_directory, new_file, write_file
from mote.errors import CheckpointError

CHILD = """
import sys
from pathlib import Path
from mote.checkpoint.atomic import new_directory

with new_directory(Path(sys.argv[1]), force=True) as partial:
    (partial / "config.json").write_text("new")
    print(partial, flush=True)
    sys.stdin.read()
"""


def old_checkpoint(out: Path) -> Path:
    out.mkdir(parents=True)
    (out / "config.json").write_text("old")
    return out


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_directory_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with new_directory(out) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "x").write_text("x")
        assert not out.exists()
    assert names(out.parent) == ["out"]
    assert (out / "sub" / "x").read_text() == "x"


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with new_directory(tmp_path / "out") as partial:
            (partial / "x").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == []


def test_existing_output_needs_force(tmp_path: Path) -> None:
    out = old_checkpoint(tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"exists already.*--force"), new_directory(out):
        pytest.fail("entered")
    with new_directory(out, force=True) as partial:
        (partial / "config.json").write_text("new")
        assert (out / "config.json").read_text() == "old"
    assert (out / "config.json").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_an_empty_directory_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_directory(tmp_path / "out") as partial:
        (partial / "x").write_text("x")
    assert names(tmp_path / "out") == ["x"]


def test_force_replaces_checkpoints_only(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "letter.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="is not a checkpoint"), new_directory(home, force=True):
        pytest.fail("entered")
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(CheckpointError, match="not a directory"),
        new_directory(tmp_path / "file", force=True),
    ):
        pytest.fail("entered")
    outer = old_checkpoint(tmp_path / "outer")
    inner = old_checkpoint(outer / "checkpoint-1")
    with (
        pytest.raises(CheckpointError, match="holds the input"),
        new_directory(outer, force=True, source=inner),
    ):
        pytest.fail("entered")
    assert (home / "letter.txt").read_text() == "dear"
    assert (inner / "config.json").read_text() == "old"


def test_force_without_an_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a file system without RENAME_EXCHANGE answers; no such one can be counted on here.
    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    out = old_checkpoint(tmp_path / "out")
    with new_directory(out, force=True) as partial:
        (partial / "config.json").write_text("new")
    assert (out / "config.json").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_killed_process_leaves_the_output_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    out = old_checkpoint(tmp_path / "out")
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        partial = Path(child.stdout.readline().strip())
        assert (partial / "config.json").read_text() == "new"
        # Work in progress of a live process is not a left-over.
        with new_directory(tmp_path / "out", force=True) as mine:
            (mine / "config.json").write_text("mine")
        assert partial.exists()
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert (out / "config.json").read_text() == "mine"
    assert names(tmp_path) == ["out", partial.name]
    with new_directory(out, force=True) as mine:
        (mine / "config.json").write_text("next")
    assert names(tmp_path) == ["out"]


def test_others_files_are_no_left_overs(tmp_path: Path) -> None:
    for name in ("out.partial-notes", "out2.partial-1", "out"):
        (tmp_path / name).mkdir()
    with new_directory(tmp_path / "out"):
        pass
    assert names(tmp_path) == ["out", "out.partial-notes", "out2.partial-1"]


def test_disk_limit_in_a_directory(tmp_path: Path, small_files: None) -> None:
    out = old_checkpoint(tmp_path / "out")
    with (
        pytest.raises(CheckpointError, match=r"cannot be written: File too large.*free space"),
        new_directory(out, force=True) as partial,
    ):
        (partial / "x").write_bytes(bytes(1 << 17))
    assert (out / "config.json").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_file_is_replaced_whole(tmp_path: Path, small_files: None) -> None:
    path = tmp_path / "x.json"
    write_file(path, "old ü")
    with pytest.raises(CheckpointError, match=r"x\.json: cannot be written: File too large"):
        write_file(path, bytes(1 << 17))
    assert path.read_text() == "old ü"
    write_file(path, b"new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["x.json"]


def test_file_in_a_directory_that_is_absent(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        write_file(tmp_path / "absent" / "x", "x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_directory_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="Permission denied"), new_directory(tmp_path / "out"):
            pytest.fail("entered")
    finally:
        tmp_path.chmod(0o700)


def test_a_stage_that_works_long_learns_first_what_it_cannot_write(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be written: No such file"):
        check_writable(Path("/proc/nowhere/out"))
    check_target(tmp_path / "new" / "out", force=False, source=None)
    assert names(tmp_path) == []
    check_writable(tmp_path / "new" / "out")
    assert names(tmp_path / "new") == []
    check_space(tmp_path / "out", 1)
    with pytest.raises(CheckpointError, match=r"needs 1,152,921,504,606\.8 MB and the disk has .* MB free"):
        check_space(tmp_path / "out", 1 << 60)


@pytest.mark.parametrize("out", ["input", "input/inside", "link"])
def test_the_input_is_never_written_to(tmp_path: Path, out: str) -> None:
    source = old_checkpoint(tmp_path / "input")
    (tmp_path / "link").symlink_to(source)
    with (
        pytest.raises(CheckpointError, match=r"is the input .* or lies in it"),
        new_directory(tmp_path / out, force=True, source=source),
    ):
        pytest.fail("entered")
    assert [path.name for path in source.iterdir()] == ["config.json"]


def test_a_new_file_appears_at_the_end_and_left_overs_go(tmp_path: Path) -> None:
    out, stale = tmp_path / "model.gguf", tmp_path / "model.gguf.partial-1"
    stale.write_text("killed")
    with new_file(out) as partial:
        partial.write_text("whole")  # opened by name again, as other libraries do
        assert not out.exists()
        # Another writer to the same place leaves work in progress alone.
        atomic.remove_stale(out)
        assert names(tmp_path) == [partial.name]
    assert names(tmp_path) == ["model.gguf"]
    assert out.read_text() == "whole"
    with pytest.raises(CheckpointError, match="exists already"), new_file(out):
        pass
    with new_file(out, force=True) as partial:
        partial.write_text("new")
    assert out.read_text() == "new"


def test_a_new_file_is_refused_in_its_source_and_over_a_directory(tmp_path: Path) -> None:
    source = old_checkpoint(tmp_path / "source")
    with pytest.raises(CheckpointError, match="lies in the input"), new_file(source / "x", force=True, source=source):
        pass
    with pytest.raises(CheckpointError, match="is not a file"), new_file(source, force=True):
        pass
    assert names(source) == ["config.json"]
