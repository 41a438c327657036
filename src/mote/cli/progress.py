"""A bar on stderr for stages that tell how many bytes they have done."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def counted_bytes(title: str) -> Iterator[Callable[[int, int], None]]:
    """Yields what a stage calls with (the bytes it has just done, all there are to do)."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(f"{title:<24}"), BarColumn(bar_width=24), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)
        yield lambda count, total: bar.update(task, advance=count, total=total)


@contextmanager
def counted_in_turn(*titles: str) -> Iterator[tuple[Callable[[int, int], None], ...]]:
    """Yields one such function for each of the parts of a stage; its bar shows from its first call on."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<24}"), BarColumn(bar_width=24), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:

        def part(title: str) -> Callable[[int, int], None]:
            task = bar.add_task(title, total=None, start=False, visible=False)

            def told(count: int, total: int) -> None:
                bar.start_task(task)
                bar.update(task, advance=count, total=total, visible=True)

            return told

        yield tuple(map(part, titles))
