"""How far a generation is: a bar on a terminal, lines elsewhere, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from triptych_local.output import note

if TYPE_CHECKING:
    from rich.progress import Progress

PLAIN_LINES = 10


class PlainDisplay:
    """A line for each phase and for every tenth of the steps."""

    def phase(self, text: str) -> None:
        """Prints what is being done now."""
        note(f"{text} ...")

    def step(self, step: int, num_steps: int) -> None:
        """Prints how many are done if that begins another tenth."""
        if step * PLAIN_LINES // num_steps > (step - 1) * PLAIN_LINES // num_steps:
            note(f"step {step} of {num_steps}")

    def note(self, text: str) -> None:
        """Prints something to keep in view."""
        note(text)


class BarDisplay:
    """One bar whose words and length change."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)

    def phase(self, text: str) -> None:
        """Writes what is being done now beside the bar."""
        self._progress.update(self._task, description=text)

    def step(self, step: int, num_steps: int) -> None:
        """Moves the bar to how many are done."""
        self._progress.update(
            self._task, description=f"step {step} of {num_steps}", total=num_steps, completed=step
        )

    def note(self, text: str) -> None:
        """Prints something to keep in view above the bar."""
        self._progress.console.print(text, markup=False, highlight=False)


Display: TypeAlias = PlainDisplay | BarDisplay


@contextmanager
def display() -> Iterator[Display]:
    """The display for where standard error goes."""
    if not sys.stderr.isatty():
        yield PlainDisplay()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield BarDisplay(progress)
