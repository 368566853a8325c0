"""The reference of the command `asyncjobs` matches its help."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from asyncjobs.cli.app import COMMANDS, EXIT_CODES, commands

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")

# Options that all commands share, and that the page documents once.
_EVERYWHERE = {"--help", "--jobs", "--store"}


def command(name: str) -> click.Command:
    found = commands.get_command(click.Context(commands), name)
    assert found is not None
    return found


def section_of(name: str) -> str:
    [section] = (part for part in PAGE.split("\n## ") if part.startswith(f"`asyncjobs {name}"))
    return section


@pytest.mark.parametrize("name", COMMANDS)
def test_the_options_of_a_command_are_those_of_its_table(name: str) -> None:
    section = section_of(name)
    parameters = command(name).params
    options = [one for one in parameters if isinstance(one, click.Option) and not one.hidden]
    names = {word for one in options for word in one.opts if word.startswith("--")}
    told = re.findall(r"^\| `(--[a-z-]+)[ `]", section, re.MULTILINE)
    assert sorted(names - _EVERYWHERE) == sorted(told)
    for option in options:
        default = option.default
        if isinstance(default, int | float) and not option.is_flag and default:
            [row] = (line for line in section.splitlines() if f"`{option.opts[0]}" in line)
            assert str(default) in row


@pytest.mark.parametrize("name", COMMANDS)
def test_the_arguments_of_a_command_are_in_its_heading(name: str) -> None:
    arguments = [one for one in command(name).params if isinstance(one, click.Argument)]
    context = click.Context(command(name))
    # Not from the usage line: it puts arguments with environment defaults in brackets.
    words = ["asyncjobs", name, *(one.metavar or one.make_metavar(context) for one in arguments)]
    assert section_of(name).splitlines()[0] == f"`{' '.join(words)}`"


def test_every_exit_code_is_in_the_table() -> None:
    told = {int(code) for code in re.findall(r"^\| (\d) \| ", PAGE, re.MULTILINE)}
    assert told == {0, 1, *EXIT_CODES.values()}
