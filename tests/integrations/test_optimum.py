"""`optimum-cli export mrc`: the file in optimum's namespace, as a wheel and an editable install bring it."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("optimum.commands", reason="optimum is not installed (extra optimum)")
from mrc_edit.core.errors import MRCError
from mrc_edit.engine.manifest import read_manifest
from mrc_edit.export import command

ROOT = Path(__file__).parents[2]
FILE = ROOT / "integrations" / "optimum" / "mrc_edit.py"
RUN = ("-m", "optimum.commands.optimum_cli", "export", "mrc")


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("optimum_command", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def parse(module):
    """`parse(*arguments)`: the command with its arguments, as optimum-cli makes it."""

    def parse(*arguments):
        parser = argparse.ArgumentParser()
        instance = module.MRCExportCommand(parser.add_subparsers())
        args = parser.parse_args(["mrc", *arguments])
        assert isinstance(instance, module.MRCExportCommand)
        return args.func(args)

    return parse


def test_flags_become_those_of_mrc_export(parse, monkeypatch):
    seen = []
    monkeypatch.setattr(command, "export", seen.append)
    given = ("--int8", "pictures", "--trt", "--max-batch", "2", "--overwrite", "--json", "--precision-report")
    parse("--model", "checkpoint", "out", "--dtype", "fp32", "--opset", "21", "--task", "auto", *given).export()
    expected = vars(
        command.arguments().parse_args(["checkpoint", "out", "--dtype", "float32", "--opset", "21", *given])
    )
    assert expected == {name: value for name, value in vars(seen[0]).items() if name in expected}
    parse("-m", "checkpoint", "out", "--dtype", "bf16").export()
    assert (seen[1].checkpoint, seen[1].out, seen[1].dtype) == ("checkpoint", Path("out"), "bfloat16")


def test_every_flag_of_mrc_export_is_there(parse):
    ours = vars(command.arguments().parse_args(["checkpoint", "out"])).keys() - {"checkpoint", "out"}
    assert ours <= vars(parse("--model", "checkpoint", "out").args).keys()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--device", "cuda"), ("--optimize", "O3"), ("--atol", "1e-3"), ("--width", "512"),
        ("--task", "text-generation"), ("--trust-remote-code",), ("--monolith",), ("--no-dynamic-axes",),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused(parse, monkeypatch, arguments):
    monkeypatch.setattr(command, "export", lambda args: pytest.fail("it was exported"))
    with pytest.raises(MRCError, match=f"{arguments[0]} .*leave it out"):
        parse("--model", "checkpoint", "out", *arguments).export()


def test_all_flags_of_optimum_are_known(module):
    """Those of optimum-onnx 0.1.0, less what this command maps."""
    flags = {
        "--task", "--opset", "--device", "--optimize", "--monolith", "--no-post-process", "--variant", "--framework",
        "--atol", "--cache_dir", "--trust-remote-code", "--pad_token_id", "--library-name", "--model-kwargs",
        "--no-dynamic-axes", "--no-constant-folding", "--slim", "--batch_size", "--sequence_length", "--num_choices",
        "--width", "--height", "--num_channels", "--feature_size", "--nb_max_frames", "--audio_sequence_length",
        "--point_batch_size", "--nb_points_per_image", "--visual_seq_length",
    }  # fmt: skip
    assert module.FIXED.keys() | module.REFUSED.keys() == flags - {"--opset"}


def test_the_parser_imports_nothing_heavy():
    code = f"""
import argparse, importlib.util, sys
spec = importlib.util.spec_from_file_location("optimum_command", {str(FILE)!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.MRCExportCommand.parse_args(argparse.ArgumentParser())
print(*(name for name in ("torch", "numpy", "onnx", "mrc_edit.engine") if name in sys.modules))
"""
    assert run(sys.executable, "-c", code).stdout.split() == []


def run(*arguments, check=True):
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True, check=False, cwd="/")
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def environment(folder: Path, *source) -> Path:
    """The Python of a new environment with this project, without kernels, and the packages of this process."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    # a line of a .pth file is a path; editable installs of this process would hide the one under test
    outside = [path for path in sys.path if path.endswith(("site-packages", "tools"))]
    (packages / "outside.pth").write_text("\n".join(outside))
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-build-isolation")
    run(*pip, "-C", "wheel.cmake=false", *source)
    return python


@pytest.mark.slow
def test_it_exports(parse, tiny, traced_once, tmp_path, capsys):
    parse("--model", str(tiny), str(tmp_path / "out"), "--dtype", "fp32", "--json").export()
    assert json.loads(capsys.readouterr().out)["files"] == read_manifest(tmp_path / "out").files


@pytest.mark.slow
def test_a_wheel_brings_it(tmp_path):
    pip = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation")
    run(*pip, "-C", "wheel.cmake=false", "-w", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if name.startswith("optimum/")] == ["optimum/commands/register/mrc_edit.py"]
    python = environment(tmp_path / "environment", wheel)
    assert str(tmp_path) in run(python, "-c", "import mrc_edit; print(mrc_edit.__file__)").stdout
    assert "mrc" in run(python, *RUN[:-1], "--help").stdout
    for arguments, message in (
        (("--task", "chat"), "--task is 'chat'"),  # by the file in optimum's namespace
        ((), "is not a checkpoint"),  # by the export
    ):
        done = run(python, *RUN, "--model", tmp_path, tmp_path / "out", *arguments, check=False)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_an_editable_install_brings_it(tmp_path):
    """Beside the command file of another distribution."""
    other = tmp_path / "other" / "optimum" / "commands" / "register"
    other.mkdir(parents=True)
    (other / "other.py").write_text("REGISTER_COMMANDS = []\nprint('other was read')\n")
    python = environment(tmp_path / "environment", "-e", ROOT)
    environ = os.environ | {"PYTHONPATH": str(tmp_path / "other")}
    done = subprocess.run([str(python), *RUN, "--help"], capture_output=True, text=True, check=True, env=environ)
    assert "--precision-report" in done.stdout and "other was read" in done.stdout
