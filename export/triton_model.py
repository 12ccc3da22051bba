"""The model `mrc` of a Triton server: an `AsyncEngine` behind Triton's Python backend.

`mrc-export --triton-repository` copies this file to `mrc/1/model.py`, beside the export that it opens. Its inputs are
arguments of `AsyncEngine.edit`, its outputs attributes of the result. `config.pbtxt` says which, and how many may wait
for how long; every parameter there but max_batch is an argument of `Engine.from_pretrained`.
"""

import asyncio
import json
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton  # of the server

from mrc_edit.core.errors import MRCError
from mrc_edit.engine import AsyncEngine, EditResult, Engine
from mrc_edit.engine.failures import as_error
from mrc_edit.engine.rewards import OTHER_BRANCHES
from mrc_edit.engine.waiting import Closed, QueueFull, TimedOut

LOOK = 0.05  # seconds between looks whether the client has cancelled; Triton calls nobody
FINAL = triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    """What Triton calls. The engine lives in an event loop of its own, in a thread."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the export and start the queue."""
        config = json.loads(args["model_config"])
        policy = config["dynamic_batching"]["default_queue_policy"]
        settings: dict[str, Any] = {name: value["string_value"] for name, value in config["parameters"].items()}
        max_batch = int(settings.pop("max_batch"))
        self.inputs = [each["name"] for each in config["input"]]
        self.outputs = {each["name"]: triton.triton_string_to_numpy(each["data_type"]) for each in config["output"]}
        self.seconds = int(policy["default_timeout_microseconds"]) / 1e6
        self.may_shorten = policy["allow_timeout_override"]
        engine = Engine.from_pretrained(Path(args["model_repository"], args["model_version"], "export"), **settings)
        self.serving = AsyncEngine(engine, max_batch, int(policy["max_queue_size"]))
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="mrc-loop", daemon=True)
        self.thread.start()
        self.start(self.serving.__aenter__()).result()

    def execute(self, requests: list) -> None:
        """Hand requests to the queue; each is answered when its edit is done."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                given = arguments(request, self.inputs)
            except MRCError as error:
                sender.send(triton.InferenceResponse(error=described(error)), flags=FINAL)
                continue
            own = request.timeout() / 1e6 if self.may_shorten else 0
            seconds = min(filter(None, (own, self.seconds)), default=None)  # to Triton 0 is no limit
            self.start(self.answer(sender, given, seconds))

    def finalize(self) -> None:
        """Refuse what waits, stop what runs."""
        self.start(self.serving.__aexit__()).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()

    def start(self, work: Coroutine) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    async def answer(self, sender: Any, given: dict[str, Any], seconds: float | None) -> None:
        """Send the edit, or why there is none."""
        edit = asyncio.create_task(self.serving.edit(**given, timeout=seconds))
        while not edit.done():
            await asyncio.wait([edit], timeout=LOOK)
            if sender.is_cancelled():
                edit.cancel()
        try:
            response = triton.InferenceResponse(tensors(edit.result(), self.outputs))
        except asyncio.CancelledError:
            response = triton.InferenceResponse(
                error=triton.TritonError("the client cancelled the edit", triton.TritonError.CANCELLED)
            )
        except Exception as error:
            response = triton.InferenceResponse(error=described(as_error(error)))
        sender.send(response, flags=FINAL)


def arguments(request: Any, names: list[str]) -> dict[str, Any]:
    """The arguments that a request gives.

    Raises:
        MRCError: a text that is no UTF-8, or rows of `reward_guidance` that are neither one nor two.
    """
    given = {name: triton.get_input_tensor_by_name(request, name) for name in names}
    return {name: argument(name, tensor.as_numpy().tolist()) for name, tensor in given.items() if tensor is not None}


def argument(name: str, values: list) -> Any:
    if name == "reward_guidance" and len(values) != 1:
        if len(values) != len(OTHER_BRANCHES):
            raise MRCError(
                f"reward_guidance has {len(values)} rows; give one for both branches, or one for each of "
                f"{' and '.join(OTHER_BRANCHES)}",
                argument=name,
            )
        return dict(zip(OTHER_BRANCHES, values, strict=True))
    if name != "image" and values and isinstance(values[0], bytes):
        try:
            values = [value.decode() for value in values]
        except UnicodeDecodeError:
            raise MRCError(f"{name} is no UTF-8; encode it so", argument=name) from None
    return values[0] if len(values) == 1 else values


def tensors(result: EditResult, outputs: dict[str, type]) -> list:
    """Attributes of a result; a list has a row an edit."""
    found = {name: getattr(result, name) for name in outputs}
    rows = {name: value if isinstance(value, list) else [value] for name, value in found.items()}
    return [triton.Tensor(name, array(rows[name]).astype(kind)) for name, kind in outputs.items()]


def array(rows: list) -> np.ndarray:
    """Rows of numbers, pictures or texts, which Triton takes as bytes."""
    return np.array([row.encode() if isinstance(row, str) else np.asarray(row) for row in rows])


def described(error: MRCError) -> Any:
    """An error of ours in Triton's words. One that names no argument is the server's own."""
    if isinstance(error, QueueFull | Closed | TimedOut):
        code = triton.TritonError.UNAVAILABLE
    else:
        code = triton.TritonError.INVALID_ARG if error.argument else triton.TritonError.INTERNAL
    return triton.TritonError(str(error), code)
