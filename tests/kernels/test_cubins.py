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
usage = {}
for sm in (80, 90):
    for kernel in specializations(320, 32, torch.float16, sm):
        usage[f"{kernel.name} {sm}"] = resources(compile_kernel(kernel, sm))
print(json.dumps(usage))
"""


@pytest.mark.slow
def test_kernels_compile_without_spills_and_use_the_matrix_units():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    process = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
    usage = json.loads(process.stdout)
    assert len(usage) == 8
    assert {name: use["spilled"] for name, use in usage.items() if use["spilled"]} == {}
    assert usage["reward_block 90"]["wgmma"] and usage["reward_block 80"]["mma"]


def test_interpreted_triton_compiles_nothing():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    code = CODE.replace("json.dumps(usage)", "0")
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert process.returncode and "TRITON_INTERPRET is set" in process.stderr
