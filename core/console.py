"""The console scripts. Their modules are imported inside `run_command`: Ctrl-C ends that, too, with one line."""

import sys
from collections.abc import Callable
from importlib import import_module

from .errors import run_command


def script(module: str) -> Callable[[], None]:
    """A console script that runs `main` of a module."""
    return lambda: sys.exit(run_command(lambda: import_module(module).main()))


mrc_edit = script("mrc_edit.engine.command")
mrc_export = script("mrc_edit.export.command")
mrc_train = script("mrc_edit.train.command")
mrc_rewards = script("mrc_edit.train.rewards.command")
mrc_serve = script("mrc_edit.serve.command")
