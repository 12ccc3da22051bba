"""What docs/serving.md says of flags is so."""

import argparse
import re
from pathlib import Path

from mrc_edit.engine.flags import add_runtime_flags
from mrc_edit.serve import command

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


def flags(parser):
    return {name for action in parser._actions for name in action.option_strings if name.startswith("--")}


def test_the_page_names_the_flags_of_mrc_edit_that_the_server_lacks():
    of_edits = argparse.ArgumentParser()
    add_runtime_flags(of_edits)
    own = flags(command.arguments())
    about = PAGE.read_text().partition("**The model** is opened")[2].partition("\n\n")[0]
    assert flags(of_edits) - own - {"--help"} == {*re.findall(r"--[\w-]+", about)} - own
