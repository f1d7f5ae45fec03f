"""The command line's library: options of a settings class, its object from words, and words from values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import click
import pytest
from annotated_types import Ge
from pydantic import Field

from triptych.serving.settings import Options
from triptych_local.cli import COMMANDS, app
from triptych_local.options import Written, command_line, parameters, read


class Inner(Options):
    """What another class has inside."""

    kind: Literal["oil", "ink"] = Field("ink", description="Of paint.")
    dry: bool = Field(True, description="Whether it waits.")


class Painting(Options):
    """Something to be told."""

    subject: Annotated[str, Written(argument=True)] = Field(description="What to paint.")
    layers: Annotated[list[Annotated[int, Ge(1)]], Written(("-l",))] = Field([], description="Of paint.")
    file: Path | None = Field(None, description="Where to. Default: nowhere.")
    width: int = Field(7, gt=0, le=9, description="In metres.")
    signed: bool = Field(False, description="By name.")
    inner: Inner


COMMAND = click.Command("paint", params=list(parameters(Painting)))


def painting(*words: str) -> Painting:
    return read(Painting, COMMAND.make_context("paint", list(words)))


def test_only_what_was_given_is_set() -> None:
    nothing = painting("a fox")
    assert nothing == Painting(subject="a fox", inner=Inner())
    assert nothing.model_fields_set == {"subject", "inner"}
    assert not nothing.inner.model_fields_set


def test_words_become_values() -> None:
    given = painting(
        *("a fox", "-l", "1", "--layers", "2", "--file", "a.png", "--signed", "--no-dry", "--kind", "oil")
    )
    assert (given.layers, given.file, given.signed) == ([1, 2], Path("a.png"), True)
    assert (given.inner.dry, given.inner.kind) == (False, "oil")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--width", "10"], "Invalid value for '--width': Input should be less than or equal to 9"),
        (["-l", "0"], "Invalid value for '--layers' / '-l': Input should be greater than or equal to 1"),
        (["--kind", "chalk"], "Invalid value for '--kind': Input should be 'oil' or 'ink'"),
    ],
)
def test_what_is_wrong_is_said_of_its_option(words: Sequence[str], sentence: str) -> None:
    with pytest.raises(click.BadParameter) as caught:
        painting("a fox", *words)
    assert caught.value.format_message() == sentence


def test_help_says_form_default_and_range() -> None:
    text = COMMAND.get_help(click.Context(COMMAND, terminal_width=200))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for line in (
        "SUBJECT What to paint.",
        "-l, --layers <int> Of paint. [x>=1]",
        "--file <path> Where to. Default: nowhere.",
        "--width <int> In metres. [default: 7; x>0; x<=9]",
        "--signed By name.",
        "--kind <oil|ink> Of paint. [default: ink]",
        "--dry / --no-dry Whether it waits. [default: True]",
    ):
        assert line in lines, text


def test_values_become_words_of_another_program() -> None:
    given = {"layers": [1, 2], "file": Path("a.png"), "signed": True, "width": 3, "dry": False}
    assert command_line(Painting, given) == [
        *("--layers", "1", "--layers", "2", "--file", "a.png", "--width", "3", "--signed")
    ]
    assert command_line(Inner, given) == ["--no-dry"]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_two_options_of_a_command_have_one_name(command: str) -> None:
    names = [name for option in parameters(app.commands[command]._settings()) for name in option.opts]
    assert sorted(names) == sorted(set(names))
