"""Compiled in a process of its own: where there is no GPU, the tests of this folder run Triton interpreted."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

CODE = """
import json, sys, torch
from mrc_edit.kernels.cubins import compile_kernel, resources, specializations
found = {}
for sm in (80, 90):
    for of in specializations(320, 32, torch.float16, sm):
        found[f"{of.name} {sm}"] = resources(compile_kernel(of, sm))
print(json.dumps(found))
"""


@pytest.mark.slow
def test_kernels_compile_without_spills_and_use_the_matrix_units():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert len(found) == 8
    assert {name: use["spilled"] for name, use in found.items() if use["spilled"]} == {}
    assert found["reward_block 90"]["wgmma"] and found["reward_block 80"]["mma"]


def test_interpreted_triton_compiles_nothing():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    code = CODE.replace("json.dumps(found)", "0")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode and "TRITON_INTERPRET is set" in done.stderr
