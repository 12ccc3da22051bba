"""Every flag of every command explains itself."""

import argparse
import importlib
import sys
from contextlib import suppress

import pytest

from mrc_edit.cli.command import BENCHMARKS

COMMANDS = {
    "mrc": ("mrc_edit.cli.command", ()),
    "mrc-edit": ("mrc_edit.engine.command", ()),
    "mrc-export": ("mrc_edit.export.command", ()),
    "mrc-train": ("mrc_edit.train.command", ()),
    "mrc-convert checkpoint": ("mrc_edit.convert.command", ("checkpoint",)),
    "mrc-serve": ("mrc_edit.serve.command", ()),
    "mrc-rewards build": ("mrc_edit.train.rewards.command", ("build",)),
    "mrc-rewards stats": ("mrc_edit.train.rewards.command", ("stats",)),
    "mrc-rewards sheet": ("mrc_edit.train.rewards.command", ("sheet",)),
}


class Parsed(Exception):
    """Carries the parser out of a command's `main`."""


@pytest.fixture(params=COMMANDS)
def command(request):
    return request.param


@pytest.fixture
def parser(command, monkeypatch):
    """The parser of a command or subcommand."""

    def stop(parser, *_):
        raise Parsed(parser)

    module, arguments = COMMANDS[command]
    with monkeypatch.context() as patch, pytest.raises(Parsed) as parsed:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
        patch.setattr(sys, "argv", [command.split()[0], *arguments])
        importlib.import_module(module).main()
    parser = parsed.value.args[0]
    for name in arguments:
        subparsers = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        parser = subparsers.choices[name]
    return parser


@pytest.fixture
def actions(parser):
    """The flags and positional arguments of a command, without --help, --version and the choice of a subcommand."""
    return [a for a in parser._actions if not isinstance(a, argparse._HelpAction | argparse._VersionAction)]


def test_every_flag_has_a_help_text(actions):
    assert actions
    texts = {action.dest: (action.help or "").partition("(default")[0].strip() for action in actions}
    assert [name for name, text in texts.items() if len(text) < 8] == []


def test_every_default_is_shown(actions):
    flags = [action for action in actions if action.option_strings]
    hidden = [a.dest for a in flags if "default: " not in a.help and "(required" not in a.help]
    assert hidden == []


def test_no_flag_is_guessed_from_its_beginning(parser, capsys):
    with suppress(SystemExit):
        parser.parse_known_args(["--hel"])
    assert "show this help" not in capsys.readouterr().out


@pytest.mark.parametrize("name", BENCHMARKS)
def test_so_are_those_of_a_benchmark(name):
    parser = importlib.import_module(f"mrc_edit.bench.{name}").arguments()
    flags = [a for a in parser._actions if a.option_strings and a.dest not in ("help", "version")]
    assert [a.dest for a in flags if "default" not in a.help] == []
