"""ONNX Runtime on an export folder; no PyTorch."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer
from tqdm import tqdm

from ...errors import MRCError
from ..contract import INPUTS
from ..manifest import confirmed, files_of, read_manifest
from .graphs import GraphBackend

PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")  # the first that is there, and the CPU


def load(folder: Path) -> "OnnxRuntimeBackend":
    return OnnxRuntimeBackend(folder)


class OnnxRuntimeBackend(GraphBackend):
    """One session a graph."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.geometry = self.manifest.geometry
        settings = [name for name in self.manifest.files if name.startswith(("tokenizer/", "scheduler/"))]
        confirmed(folder, self.manifest, {*settings, "tokenizer/tokenizer.json", "scheduler/scheduler_config.json"})
        self.scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
        with tqdm(INPUTS, desc="load export", leave=False, disable=None) as roles:
            self.sessions = {role: self.session(role) for role in roles}

    def session(self, role: str, precision: str | None = None) -> onnxruntime.InferenceSession:
        artifact = self.manifest.artifact(role, "onnx", precision)
        if artifact is None:
            raise MRCError(f"{self.folder} has no ONNX graph {role!r}; run mrc-export again")
        confirmed(self.folder, self.manifest, [artifact.path, *files_of(self.manifest, artifact)])
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        available = onnxruntime.get_available_providers()
        providers = [name for name in PROVIDERS if name in available]
        try:
            return onnxruntime.InferenceSession(str(self.folder / artifact.path), options, providers)
        # ONNX Runtime's exceptions share no base but Exception
        except Exception as error:
            reason = str(error).splitlines()[0]
            if "bfloat16" in (artifact.precision, precision):
                reason = f"ONNX Runtime's CPU provider has no bfloat16 convolution ({reason})"
            raise MRCError(f"ONNX Runtime refuses {artifact.path}: {reason}; export again, or in float32") from None

    def run(self, role: str, **feeds: np.ndarray) -> list[np.ndarray]:
        return self.sessions[role].run(None, feeds)

    def vae_decoder(self, *, latents: np.ndarray) -> np.ndarray:
        images = self.run("vae_decoder", latents=latents)[0]
        fallback = self.manifest.artifact("vae_decoder", "onnx", "float32")
        if not np.isfinite(images).all() and self.manifest.precision != "float32" and fallback:
            self.sessions["vae_decoder"] = self.session("vae_decoder", "float32")
            images = self.run("vae_decoder", latents=latents)[0]
        return images
