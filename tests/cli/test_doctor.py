import json
import sys
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest

from mrc_edit.cli import doctor, machine, self_test
from mrc_edit.core import console, memory
from mrc_edit.core.errors import MRCError
from mrc_edit.engine.backends import BACKENDS

EDIT = {"seconds": 0.5, "precision": "float32", "edit": np.full((16, 16, 3), 0.5).tolist()}


@pytest.fixture
def run(monkeypatch, capsys):
    """`mrc doctor` where the self-tests answer as given, by backend; all packages are there, and no GPU."""

    def call(answers, *arguments):
        def ask(module, request, failure):
            answer = answers.get(request["backend"], EDIT)
            if isinstance(answer, Exception):
                raise answer
            return json.loads(json.dumps(answer))

        monkeypatch.setattr(doctor, "ask", ask)
        monkeypatch.setattr(doctor, "state_of", lambda name: "available")
        monkeypatch.setattr(machine, "gpus", list)
        monkeypatch.setattr(sys, "argv", ["mrc", "doctor", *arguments])
        with pytest.raises(SystemExit) as end:
            console.mrc()
        return end.value.code, *capsys.readouterr()

    return call


def test_all_is_well(run):
    providers = {"CPUExecutionProvider": "", "CUDAExecutionProvider": "it needs a card"}
    status, stdout, _ = run({"onnxruntime": EDIT | {"providers": providers}}, "--json")
    report = json.loads(stdout)
    assert status == 0 and report["works"]
    states = {name: entry["state"] for name, entry in report["backends"].items()}
    assert states == dict.fromkeys(BACKENDS, "works") | {"tensorrt": "no GPU"}
    assert report["providers"] == providers and report["backends"]["eager"]["seconds"] == 0.5
    assert report["machine"]["memory"]["total"] > 1e8 and report["versions"]["mrc-edit"] == console.VERSION.split()[1]


def test_memory_is_that_of_the_container(monkeypatch, tmp_path):
    for module in (machine, memory):
        monkeypatch.setattr(module, "GROUP", tmp_path)
    (tmp_path / "memory.max").write_text("10000000\n")
    (tmp_path / "memory.current").write_text("4000000\n")
    assert machine.memory() == {"total": 10_000_000, "free": 6_000_000}


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"error": "its graph is damaged"}, "its graph is damaged"),
        (MRCError("its self-test broke off: its process was ended by SIGILL"), "SIGILL"),
        (EDIT | {"edit": np.full((16, 16, 3), 0.7).tolist()}, "differs from that of eager by 0.20"),
        (EDIT | {"edit": np.full((16, 16, 3), np.nan).tolist()}, "differs from that of eager by nan"),
    ],
)
def test_what_is_installed_and_does_not_work_is_status_1(run, answer, why):
    status, stdout, _ = run({"openvino": answer})
    assert status == 1 and stdout.endswith("something that is installed does not work\n")
    (line,) = [line for line in stdout.splitlines() if line.startswith("  openvino  ") and "fails" in line]
    assert why in line


def test_what_is_missing_is_no_failure_and_names_its_installation(run, monkeypatch):
    def version(name):
        if name == "openvino":
            raise PackageNotFoundError(name)
        return "0.1" if name == "onnx" else "1000"

    monkeypatch.setattr(machine, "version", version)
    status, stdout, _ = run({})
    assert status == 0
    extras = dict(line.split(maxsplit=1) for line in stdout.partition("\nextras\n")[2].splitlines() if line[:2] == "  ")
    assert extras["openvino"].startswith("pip install 'mrc-edit[openvino]' brings openvino>=")
    assert "onnx>=1.19 (here is 0.1)" in extras["export"] and "onnx>=1.19 (here is 0.1)" in extras["int8"]  # names it
    assert extras["torch"] == "complete"


def test_a_backend_whose_packages_are_missing_is_not_tried(monkeypatch):
    monkeypatch.setattr(doctor, "state_of", lambda name: "needs torch: pip install 'mrc-edit[torch]' (extra torch)")
    monkeypatch.setattr(doctor, "ask", lambda *_: pytest.fail("tried"))
    assert doctor.examine_backend("eager", gpu=True)["state"] == "missing"


def test_a_native_library_that_does_not_load_fails(run, monkeypatch):
    def broken():
        raise MRCError("libmrc_kernels.so cannot be loaded: wrong ELF class")

    monkeypatch.setattr(doctor, "library", broken)
    monkeypatch.setattr(doctor, "find", lambda name: "here")
    status, stdout, _ = run({})
    assert status == 1 and "wrong ELF class" in stdout


def test_the_self_test_in_its_own_process():
    answer = doctor.examine_backend("onnxruntime", gpu=False)
    assert answer["state"] == "works" and answer["providers"]["CPUExecutionProvider"] == ""
    assert np.shape(answer["edit"]) == (16, 16, 3)


def test_noise_is_not_an_edit(monkeypatch):
    """A backend that computes something else than the model."""
    edit = self_test.Engine.edit

    def noise(engine, *arguments, **options):
        result = edit(engine, *arguments, **options)
        pixels = np.random.RandomState(0).randint(0, 256, (*result.images[0].size[::-1], 3), dtype=np.uint8)
        result.images = [self_test.load_image(pixels)]
        return result

    monkeypatch.setattr(self_test.Engine, "edit", noise)
    assert "does not look like it" in self_test.answer("onnxruntime")["error"]


def test_without_mini_the_kernels_are_tested(monkeypatch, tmp_path):
    monkeypatch.setitem(self_test.MODELS, "mini", tmp_path / "none")
    assert self_test.answer("torch") == {}
    from mrc_edit.kernels import ops

    kernel = ops.group_norm_silu
    monkeypatch.setattr(ops, "group_norm_silu", lambda *arguments: kernel(*arguments) + (0 if ops.forced else 1))
    assert "differs from its reference" in self_test.answer("torch")["error"]
