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

PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")  # the first that is there, and the CPU


def load(folder: Path) -> "OnnxRuntimeBackend":
    return OnnxRuntimeBackend(folder)


class OnnxRuntimeBackend:
    """The `Backend` protocol over one session a graph."""

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

    def text_encoder(self, *, input_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        states, pooled = self.run("text_encoder", input_ids=input_ids)
        return states, pooled

    def vae_encoder(self, *, images: np.ndarray) -> np.ndarray:
        return self.run("vae_encoder", images=images)[0]

    def vae_decoder(self, *, latents: np.ndarray) -> np.ndarray:
        images = self.run("vae_decoder", latents=latents)[0]
        fallback = self.manifest.artifact("vae_decoder", "onnx", "float32")
        if not np.isfinite(images).all() and self.manifest.precision != "float32" and fallback:
            self.sessions["vae_decoder"] = self.session("vae_decoder", "float32")
            images = self.run("vae_decoder", latents=latents)[0]
        return images

    def conditioner(self, *, timesteps, text_states, reward_scores, reward_text, text, reward) -> dict:
        rewards = {"reward_scores": reward_scores, "reward_text": reward_text} if self.geometry.rewards else {}
        time_bias, text_kv, *folded = self.run("conditioner", timesteps=timesteps, text_states=text_states, **rewards)
        row = reward if self.geometry.rewards else np.zeros_like(reward)
        names = list(INPUTS["unet"])[-len(folded) :] if folded else []
        return {
            "time_bias": time_bias[:, row],
            "text_kv": text_kv[text],
            **{name: tensor[row] for name, tensor in zip(names, folded, strict=True)},
        }

    def unet(self, *, conditions, step, sample, branch, guidance) -> tuple[np.ndarray, np.ndarray]:
        feeds = {**conditions, "time_bias": conditions["time_bias"][step]}
        (noise,) = self.run("unet", sample=sample, branch=branch, guidance=guidance, **feeds)
        return noise, np.eye(len(guidance), dtype=np.float32)
