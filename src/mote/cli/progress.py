"""A bar on stderr for stages that tell how many bytes they have done."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def counted_bytes(title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Yields what a stage calls with the bytes it has just done; `total`: all of them, None where nobody knows."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(f"{title:<24}"), BarColumn(bar_width=24), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)
