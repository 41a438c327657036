"""Check a data file as a whole: every bad row at once, pictures decoded, so that a run does not fail at row
600,000."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mote.data.conversation import Row, iterate_rows, problems_of
from mote.data.images import MAX_PIXELS, check_image
from mote.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is wrong with the row that begins at `line` of `path`."""

    path: Path
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


def validate(
    path: Path | str,
    *,
    image_root: Path | str | None = None,
    max_pixels: int = MAX_PIXELS,
    open_images: bool = True,
    threads: int = 4,
) -> list[Problem]:
    """All problems of a LLaVA JSON or JSONL file, in the order of its lines; an empty list for a good file.

    image_root: where relative pictures lie, else beside the file. open_images: decode every picture, each
    once. Raises DataError only when the file itself cannot be read.
    """
    path = Path(path)
    root = Path(image_root) if image_root is not None else path.parent
    rows = list(iterate_rows(path))
    problems = [Problem(path=path, line=line, message=message) for line, message in _row_problems(rows)]
    if not rows:
        problems.append(Problem(path=path, line=1, message="holds no conversation"))
    if open_images:
        users: dict[Path, list[int]] = {}
        for row in rows:
            if isinstance(row.value, dict) and isinstance(row.value.get("image"), str) and row.value["image"]:
                users.setdefault(root / row.value["image"], []).append(row.line)
        with ThreadPoolExecutor(max(1, threads)) as pool:
            for picture, message in zip(
                users, pool.map(partial(_picture_problem, max_pixels=max_pixels), users), strict=True
            ):
                if message:
                    problems += [Problem(path=path, line=line, message=message) for line in users[picture]]
    return sorted(problems, key=lambda problem: problem.line)


def _row_problems(rows: Iterable[Row]) -> Iterator[tuple[int, str]]:
    lines: dict[str, int] = {}
    for row in rows:
        for message in [row.problem] if row.problem else problems_of(row.value):
            yield row.line, message
        if isinstance(row.value, dict) and isinstance(row.value.get("id"), str | int):
            first = lines.setdefault(str(row.value["id"]), row.line)
            if first != row.line:
                yield row.line, f"id {row.value['id']!r} was already used in line {first}"


def _picture_problem(picture: Path, *, max_pixels: int) -> str:
    try:
        check_image(picture, max_pixels=max_pixels)
    except DataError as error:
        return f"image {error}"
    return ""
