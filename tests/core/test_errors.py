"""How commands end."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mrc_edit.core.errors import MRCError, run_command

WRITER = """
import sys, time
from pathlib import Path
from mrc_edit.core.errors import run_command
from mrc_edit.core.files import replace_folder
def command():
    with replace_folder(Path(sys.argv[1])) as partial:
        print("writing", flush=True)
        while True:
            time.sleep(0.05)
sys.exit(run_command(command))
"""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MRCError("a is 1;\ngive 2"), "error: a is 1; give 2"),
        (OSError(28, "No space left on device"), "error: [Errno 28] No space left on device"),
        (MemoryError("Unable to allocate 8 TiB"), "error: there is not enough memory (Unable to allocate 8 TiB)"),
    ],
)
def test_an_error_is_one_line(error, line, capsys):
    def command():
        raise error

    assert run_command(command) == 2
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1 and printed[0].startswith(line)


def test_a_warning_is_one_line():
    code = r"import warnings; from mrc_edit.core.errors import run_command; run_command(lambda: warnings.warn('a\nb'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "warning: a b\n"


def test_a_fault_of_ours_keeps_its_traceback():
    def command():
        raise KeyError("x")

    with pytest.raises(KeyError):
        run_command(command)


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_leaves_nothing_half_written(sent, status, tmp_path):
    script = tmp_path / "write.py"
    script.write_text(WRITER)
    command = [sys.executable, str(script), str(tmp_path / "out" / "folder")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        time.sleep(0.1)
        for _ in range(2):  # as an impatient user does
            process.send_signal(sent)
        assert process.wait(60) == status
        assert process.stderr.read() == f"stopped by {sent.name}\n"
    assert list((tmp_path / "out").iterdir()) == []


def test_handlers_of_others_come_back():
    before = signal.getsignal(signal.SIGTERM)
    assert run_command(lambda: None) == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_file_name_that_is_no_utf8_can_be_printed(tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff.png"
    script = (
        "import sys\nfrom mrc_edit.core.errors import run_command\nsys.exit(run_command(lambda: print(sys.argv[1])))"
    )
    done = subprocess.run([sys.executable, "-c", script, name], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"") and done.stdout.strip() == os.fsencode(tmp_path) + rb"/\udcff.png"
