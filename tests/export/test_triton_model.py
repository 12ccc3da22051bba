"""Triton's model `mrc`: inside a stand-in for the server, and in the tritonserver that nvidia-pytriton carries.

MRC_TRITON names the folder of the latter's virtual environment, which is made there (220 MB) when there is none.
"""

import importlib.util
import json
import os
import queue
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from google.protobuf import json_format, text_format

from mrc_edit.core.errors import MRCError
from mrc_edit.engine import Engine
from mrc_edit.engine.shipped import MODELS
from mrc_edit.export.triton import INPUTS, MODEL_FILE, OUTPUTS, write_repository

grpc = pytest.importorskip("tritonclient.grpc", reason="no tritonclient: pip install 'mrc-edit[dev]'")

ROOT = Path(__file__).parents[2]
PACKAGES = ("nvidia-pytriton==0.7.0", "numpy==1.26.4")  # that backend reads strides of numpy 2 wrongly
WAITING = 4  # requests that the queue holds
PATIENCE = 120  # seconds
INSTRUCTION = "make it look like a sunset in Ümeå"
PLUG = {"num_inference_steps": 1000, "num_images_per_prompt": 8}  # takes minutes
KINDS = {"STRING": np.object_, "FP64": np.float64, "INT64": np.int64, "BOOL": np.bool_, "UINT8": np.uint8}


class Refused(Exception):
    """What the server answers in place of an edit: gRPC's name of the status, and the message."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """Of `mini`, with a short queue."""
    folder = tmp_path_factory.mktemp("triton") / "models"
    write_repository(MODELS["mini"] / "onnx", folder)
    path = folder / "mrc" / "config.pbtxt"
    text = path.read_text()
    assert "max_queue_size: 64\n" in text
    path.write_text(text.replace("max_queue_size: 64\n", f"max_queue_size: {WAITING}\n"))
    return folder


@pytest.fixture(scope="module", params=["stand-in", pytest.param("tritonserver", marks=pytest.mark.slow)])
def server(request, repository, tmp_path_factory):
    """`server(timeout=microseconds, **inputs)` asks for an edit; of what it returns `result()` are the outputs.

    `server.settle()` waits until what was asked for runs or waits.
    """
    made = stand_in(repository) if request.param == "stand-in" else tritonserver(repository, tmp_path_factory)
    yield next(made)
    next(made, None)


def arrays(inputs):
    """Values as arrays of the inputs' types."""
    given = {name: value.encode() if isinstance(value, str) else value for name, value in inputs.items()}
    return {name: np.atleast_1d(np.array(value, KINDS[INPUTS[name][0]])) for name, value in given.items()}


def utils():
    """Triton's module for Python models, as far as ours uses it."""
    module = ModuleType("triton_python_backend_utils")

    class Tensor:
        def __init__(self, name, array):
            self.name, self.array = name, array

        def as_numpy(self):
            return self.array

    class TritonError:
        INVALID_ARG, UNAVAILABLE, INTERNAL, CANCELLED = "INVALID_ARGUMENT", "UNAVAILABLE", "INTERNAL", "CANCELLED"

        def __init__(self, message, code):
            self.message, self.code = message, code

    class InferenceResponse:
        def __init__(self, output_tensors=(), error=None):
            self.tensors, self.error = output_tensors, error

    module.Tensor, module.TritonError, module.InferenceResponse = Tensor, TritonError, InferenceResponse
    module.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    module.get_input_tensor_by_name = lambda request, name: request.inputs.get(name)
    module.triton_string_to_numpy = lambda kind: KINDS[kind.removeprefix("TYPE_")]
    return module


class StandInRequest:
    """A request, its sender and its answer in one."""

    def __init__(self, inputs, timeout):
        tensor = sys.modules["triton_python_backend_utils"].Tensor
        self.inputs = {name: tensor(name, array) for name, array in arrays(inputs).items()}
        self.microseconds, self.cancelled, self.answers = timeout, False, queue.Queue()

    def get_response_sender(self):
        return self

    def timeout(self):
        return self.microseconds

    def is_cancelled(self):
        return self.cancelled

    def send(self, response, flags):
        assert flags == 1 and self.answers.empty()
        self.answers.put(response)

    def cancel(self):
        self.cancelled = True

    def result(self):
        response = self.answers.get(timeout=PATIENCE)
        if response.error:
            raise Refused(response.error.code, response.error.message)
        return {tensor.name: tensor.array for tensor in response.tensors}


def stand_in(repository):
    sys.modules["triton_python_backend_utils"] = utils()
    spec = importlib.util.spec_from_file_location("triton_model", repository / "mrc" / "1" / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = text_format.Parse((repository / "mrc" / "config.pbtxt").read_text(), grpc.model_config_pb2.ModelConfig())
    as_json = json.dumps(json_format.MessageToDict(config, preserving_proto_field_name=True))
    model = module.TritonPythonModel()
    model.initialize({"model_config": as_json, "model_repository": str(repository / "mrc"), "model_version": "1"})

    def ask(timeout=0, **inputs):
        request = StandInRequest(inputs, timeout)
        model.execute([request])
        return request

    def settle():
        end = time.monotonic() + PATIENCE
        while model.serving.checking or not model.serving.running:
            assert time.monotonic() < end
            time.sleep(0.01)

    ask.settle = settle
    yield ask
    model.finalize()
    del sys.modules["triton_python_backend_utils"]


class Stream:
    """A request on a stream of its own, as a client of Triton sends it."""

    def __init__(self, address, inputs, timeout):
        self.answers = queue.Queue()
        self.client = grpc.InferenceServerClient(address)
        self.client.start_stream(
            lambda result, error: self.answers.put((result, error)), headers={"triton_grpc_error": "true"}
        )
        tensors = []
        for name, array in arrays(inputs).items():
            kind = INPUTS[name][0].replace("STRING", "BYTES")
            tensors.append(grpc.InferInput(name, list(array.shape), kind))
            tensors[-1].set_data_from_numpy(array)
        self.client.async_stream_infer("mrc", tensors, timeout=timeout or None)

    def cancel(self):
        self.client.stop_stream(cancel_requests=True)
        self.client.close()

    def result(self):
        result, error = self.answers.get(timeout=PATIENCE)
        self.client.close()
        if error:
            raise Refused(str(error.status()).removeprefix("StatusCode."), error.message())
        return {name: result.as_numpy(name) for name in OUTPUTS}


def packages_of_triton():
    """The folder of packages of the virtual environment that runs inside tritonserver."""
    if "MRC_TRITON" not in os.environ:
        pytest.skip("MRC_TRITON names no folder for the environment of tritonserver (220 MB, of nvidia-pytriton)")
    environment = Path(os.environ["MRC_TRITON"])
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(environment)}))
    if not (packages / "pytriton").is_dir():
        venv.create(environment)
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", packages, *PACKAGES]
        subprocess.run(command, check=True)
    return packages


def tritonserver(repository, tmp_path_factory):
    packages = packages_of_triton()
    own, folder = packages / "pytriton" / "tritonserver", tmp_path_factory.mktemp("tritonserver")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = own / "python_backend_stubs" / python / "triton_python_backend_stub"
    if not stub.is_file():
        pytest.skip(f"nvidia-pytriton has no stub for Python {python}")
    shutil.copytree(own / "backends", folder / "backends")
    shutil.copy(stub, folder / "backends" / "python")
    (folder / "mrc_edit").symlink_to(ROOT)
    needed = ("onnxruntime", "tokenizers", "PIL", "tqdm", "huggingface_hub", "packaging")
    paths = [folder, *(Path(importlib.util.find_spec(name).origin).parents[1] for name in needed)]
    (packages / "mrc.pth").write_text("\n".join(map(str, dict.fromkeys(paths))))  # the stub knows no PYTHONPATH
    libraries = [packages / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [own / "bin" / "tritonserver", "--model-repository", repository, "--model-control-mode=explicit"]
    command += ["--load-model=mrc", "--backend-directory", folder / "backends", "--allow-http=false"]
    command += ["--allow-metrics=false", "--grpc-address=127.0.0.1", f"--grpc-port={address.split(':')[1]}"]
    path = f"{os.environ['MRC_TRITON']}/bin{os.pathsep}{os.environ['PATH']}"  # by which the stub finds its packages
    environment = os.environ | {"PATH": path, "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries))}
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    try:
        until_ready(process, address, log)

        def ask(timeout=0, **inputs):
            return Stream(address, inputs, timeout)

        ask.settle = lambda: time.sleep(2)  # nothing that Triton tells says so
        yield ask
    finally:
        process.terminate()
        process.wait(60)


def until_ready(process, address, log):
    end = time.monotonic() + PATIENCE
    with grpc.InferenceServerClient(address) as client:
        while True:
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            try:
                if client.is_model_ready("mrc"):
                    return
            except grpc.InferenceServerException:
                pass
            time.sleep(0.2)


@pytest.fixture(scope="module")
def mini():
    return Engine.from_pretrained("mini")


@pytest.fixture(scope="module")
def picture():
    return (ROOT / "demo" / "chelsea.jpg").read_bytes()


def refusal(request):
    with pytest.raises(Refused) as error:
        request.result()
    return error.value.args


def test_an_edit_is_that_of_the_engine(server, mini, picture):
    """With every argument, and with none."""
    options = {"num_inference_steps": 3, "guidance_scale": 2.3, "image_guidance_scale": 1.3, "scheduler": "ddim"}
    options |= {"reward_scores": (5, 4.3, 5), "reward_text": "None; blurry; None", "negative_prompt": "noise"}
    options |= {"reward_guidance_text": "None; None; dark", "resolution": 96, "fit": "pad", "keep_size": True}
    rows = {"reward_guidance": [[1, 1, 2], [2, 1, 1]]}
    found = server(image=picture, instruction=INSTRUCTION, seed=[7, -8], num_images_per_prompt=2, **options, **rows)
    branches = {"reward_guidance": {"image": [1, 1, 2], "empty": [2, 1, 1]}}
    expected = mini.edit(picture, INSTRUCTION, seed=[7, -8], num_images_per_prompt=2, **options, **branches)
    outputs = found.result()
    np.testing.assert_array_equal(outputs["images"], np.stack([np.asarray(image) for image in expected.images]))
    assert outputs["seed"].tolist() == [7, -8] and outputs["boxes"].tolist() == [list(box) for box in expected.boxes]
    assert outputs["batch_size"].tolist() == [2] and outputs["waited"] > 0

    outputs = server(image=picture, instruction=INSTRUCTION).result()
    expected = mini.edit(picture, INSTRUCTION, seed=int(outputs["seed"][0]))
    np.testing.assert_array_equal(outputs["images"][0], np.asarray(expected.images[0]))
    (words,) = outputs["warnings"].tolist()
    assert "not learned" in words.decode() and "Ümeå" in words.decode()
    assert server(image=picture, instruction="make it sepia", num_inference_steps=1).result()["warnings"].tolist() == []


def test_requests_at_once_go_together(server, mini, picture):
    """Behind one that runs. Each gives what `Engine.edit` gives in the same batch; more than may wait are refused."""
    plug = server(image=picture, instruction=INSTRUCTION, **PLUG)
    server.settle()
    options = {"num_inference_steps": 2, "resolution": 64}
    asked = [server(image=picture, instruction=INSTRUCTION, seed=seed, **options) for seed in range(WAITING)]
    server.settle()
    code, message = refusal(server(image=picture, instruction=INSTRUCTION))
    assert code == "UNAVAILABLE" and "wait already" in message
    plug.cancel()
    expected = mini.edit([picture] * WAITING, INSTRUCTION, seed=list(range(WAITING)), **options)
    for request, image in zip(asked, expected.images, strict=True):
        outputs = request.result()
        assert outputs["batch_size"] == WAITING
        np.testing.assert_array_equal(outputs["images"][0], np.asarray(image))


def test_a_client_that_cancels_stops_its_edit(server, picture):
    """The next would otherwise wait for minutes."""
    plug = server(image=picture, instruction=INSTRUCTION, **PLUG)
    server.settle()
    waits = server(image=picture, instruction=INSTRUCTION, num_inference_steps=1, timeout=60_000_000)
    plug.cancel()
    assert waits.result()["images"].shape[0] == 1


def test_a_request_has_a_time_limit_of_its_own(server, picture):
    code, message = refusal(server(image=picture, instruction=INSTRUCTION, timeout=500_000, **PLUG))
    assert code == "UNAVAILABLE" and "0.5 s" in message


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("image", b"hello", "not an image"),
        ("reward_scores", (6, 5, 5), "reward_scores"),
        ("reward_guidance", [[1, 1, 1]] * 3, "has 3 rows"),
        ("guidance_scale", float("nan"), "guidance_scale"),
        ("num_images_per_prompt", 9, "max_batch is 8"),
        ("seed", [1, 2], "2 values of seed"),
        ("scheduler", "heun", "scheduler"),
        ("tier", "slow", "tier"),
        ("instruction", b"\xff", "no UTF-8"),
    ],
)
def test_bad_input_is_named(server, picture, name, value, words):
    """With the words that `Engine.edit` has."""
    code, message = refusal(server(**{"image": picture, "instruction": INSTRUCTION, name: value}))
    assert code == "INVALID_ARGUMENT" and words in message


def test_a_cancelled_request_is_answered(repository, picture):
    """Triton's own answer to the client is gone by then; the model's must come all the same, and say so."""
    made = stand_in(repository)
    server = next(made)
    plug = server(image=picture, instruction=INSTRUCTION, num_inference_steps=1000)
    server.settle()
    plug.cancel()
    assert refusal(plug)[0] == "CANCELLED"
    late = server(image=picture, instruction=INSTRUCTION, num_inference_steps=1000)
    next(made, None)  # unloads the model
    assert refusal(late)[0] == "UNAVAILABLE"


def test_a_setting_that_the_engine_does_not_have(repository, tmp_path):
    """Parameters of the config are arguments of `Engine.from_pretrained`."""
    shutil.copytree(repository, tmp_path / "models")
    path = tmp_path / "models" / "mrc" / "config.pbtxt"
    path.write_text(path.read_text() + 'parameters { key: "backend" value { string_value: "abacus" } }\n')
    with pytest.raises(MRCError, match="abacus"):
        next(stand_in(tmp_path / "models"))


def test_the_repository_has_this_model(repository):
    assert (repository / "mrc" / "1" / "model.py").read_bytes() == MODEL_FILE.read_bytes()
