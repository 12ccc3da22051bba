"""ONNX Runtime on an export folder; no PyTorch."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime import OrtValue
from tqdm import tqdm

from ...core.errors import MRCError
from ...core.files import file_digest, foreign_files, make_once, swapped_folder
from ..failures import memory_ran_out
from ..graphs import GRAPHS
from ..manifest import Artifact, files_of
from .exported import ExportBackend, cache_folder, without_cache

PREFERRED = ("CUDAExecutionProvider", "CPUExecutionProvider")  # the first that is there
DIGESTS = "digests.json"
LARGE = 64 << 20  # bytes of weights from which an optimized graph is worth its place on disk


def load(
    folder: Path,
    precision: str | None = None,
    provider: str | None = None,
    provider_options: Mapping[str, object] | None = None,
) -> "OnnxRuntimeBackend":
    return OnnxRuntimeBackend(folder, precision, provider, provider_options)


class OnnxRuntimeBackend(ExportBackend[OrtValue]):
    """One session a graph, with inputs and outputs bound."""

    def __init__(
        self,
        folder: Path,
        precision: str | None = None,
        provider: str | None = None,
        provider_options: Mapping[str, object] | None = None,
        cached: bool = True,
    ) -> None:
        super().__init__(folder, precision)
        self.cached = cached
        if provider is None:
            if provider_options:
                raise MRCError("provider_options were given without provider; name the provider they are for")
            available = onnxruntime.get_available_providers()
            provider = next(name for name in PREFERRED if name in available)
        self.provider, self.options = provider, {k: str(v) for k, v in (provider_options or {}).items()}
        self.device = "cuda" if provider.startswith(("CUDA", "Tensorrt", "NvTensorRT")) else "cpu"
        self.fallback: onnxruntime.InferenceSession | None = None  # the decoder in float32
        with tqdm(GRAPHS, desc="load export", leave=False, disable=None) as names:
            self.sessions = {name: self.session(self.artifact(name)) for name in names}

    def session(self, artifact: Artifact) -> onnxruntime.InferenceSession:
        """Open a graph: the one optimized earlier for this machine if there is one."""
        files = [artifact.path, *files_of(self.manifest, artifact)]
        size = sum((self.folder / name).stat().st_size for name in files if (self.folder / name).is_file())
        if self.cached and self.provider == "CPUExecutionProvider" and size >= LARGE and (folder := cache_folder()):
            digests = "".join(self.manifest.files.get(name, "") for name in files)
            key = hashlib.sha256((onnxruntime.__version__ + cpu() + digests).encode()).hexdigest()[:16]
            place = folder / f"onnxruntime-{artifact.role}-{artifact.precision}-{key}"
            try:
                make_once(place, lambda: intact(place), lambda: self.optimize(artifact, place))
                return self.open_optimized(artifact, place)
            except (MRCError, OSError) as error:
                session = self.open(artifact, onnxruntime.SessionOptions())  # raises what is wrong with the export
                without_cache(folder, str(error))
                return session
        return self.open(artifact, onnxruntime.SessionOptions())

    def optimize(self, artifact: Artifact, place: Path) -> None:
        """Write a graph optimized for this machine; the caller holds the lock of `place`."""
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "model.onnx.data")
        options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
        with swapped_folder(place, check_cached) as new:
            options.optimized_model_filepath = str(new / "model.onnx")
            self.open(artifact, options)
            self.open_optimized(artifact, new)  # ONNX Runtime is silent about a full disk
            digests = {path.name: file_digest(path) for path in new.iterdir()}
            (new / DIGESTS).write_text(json.dumps(digests))

    def open_optimized(self, artifact: Artifact, place: Path) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # done already
        return self.created(artifact, str(place / "model.onnx"), options)

    def open(self, artifact: Artifact, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
        """Open a graph from memory, so that what was checked is what is used; no other file is read."""
        graph, external = self.content(artifact)
        sizes = [len(data) for data in external.values()]
        options.add_external_initializers_from_files_in_memory(list(external), list(external.values()), sizes)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
        return self.created(artifact, graph, options)

    def created(
        self, artifact: Artifact, graph: str | bytes, options: onnxruntime.SessionOptions
    ) -> onnxruntime.InferenceSession:
        """A session of a file or of the content of one."""
        options.log_severity_level = 3
        names = onnxruntime.get_available_providers()
        try:
            if self.provider in names:
                providers = [(self.provider, self.options)]
                if self.provider != "CPUExecutionProvider":
                    providers.append(("CPUExecutionProvider", {}))
                return onnxruntime.InferenceSession(graph, options, providers)
            devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == self.provider]
            if not devices:
                plugged = {device.ep_name for device in onnxruntime.get_ep_devices()}
                raise MRCError(
                    f"ONNX Runtime has no provider {self.provider!r} here; it has {', '.join({*names, *plugged})}. "
                    "Install the package that brings it, or register it with "
                    "onnxruntime.register_execution_provider_library"
                )
            options.add_provider_for_devices(devices[:1], self.options)
            return onnxruntime.InferenceSession(graph, options)
        except MRCError:
            raise
        # ONNX Runtime's exceptions share no base but Exception
        except Exception as error:
            reason = str(error).splitlines()[0]
            if memory_ran_out(error):
                raise MRCError(f"there is not enough memory to open {artifact.path}; free some") from None
            if artifact.precision == "bfloat16":
                reason = f"ONNX Runtime's CPU provider has no bfloat16 convolution ({reason})"
            raise MRCError(f"ONNX Runtime refuses {artifact.path}: {reason}; export again, or in float32") from None

    def to_device(self, array: np.ndarray) -> OrtValue:
        return OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self.device, 0)

    def to_numpy(self, value: OrtValue) -> np.ndarray:
        return value.numpy()

    def runner(self, graph: str) -> "SessionRunner":
        return SessionRunner(self.sessions[graph], self.device)

    def vae_decoder(self, *, latents: np.ndarray) -> np.ndarray:
        """Images that overflow in half precision are decoded again in float32: those alone, and each time anew."""
        images = super().vae_decoder(latents=latents)
        overflowed = ~np.isfinite(images).all(axis=(1, 2, 3))
        fallback = self.manifest.artifact("vae_decoder", "onnx", "float32")
        if self.manifest.precision == "float32" or fallback is None or not overflowed.any():
            return images
        if self.fallback is None:
            self.fallback = self.session(fallback)
        outputs = SessionRunner(self.fallback, self.device)({"latents": self.to_device(latents[overflowed])})
        images = images.copy()
        images[overflowed] = self.to_numpy(outputs["images"])
        return images


class SessionRunner:
    """Runs a session into buffers of its own, one set for each set of input shapes."""

    def __init__(self, session: onnxruntime.InferenceSession, device: str) -> None:
        self.session = session
        self.names = [output.name for output in session.get_outputs()]
        self.devices = {name: device if name == "deep" else "cpu" for name in self.names}  # deep features stay
        self.outputs: dict[tuple, dict[str, OrtValue]] = {}

    def __call__(self, feeds: dict[str, OrtValue]) -> dict[str, OrtValue]:
        binding = self.session.io_binding()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, value)
        shapes = tuple(tuple(value.shape()) for value in feeds.values())
        buffers = self.outputs.get(shapes, {})
        for name, device in self.devices.items():
            if name in buffers:
                binding.bind_ortvalue_output(name, buffers[name])
            else:
                binding.bind_output(name, device)
        self.session.run_with_iobinding(binding)
        self.outputs[shapes] = dict(zip(self.names, binding.get_outputs(), strict=True))
        return self.outputs[shapes]


def intact(place: Path) -> bool:
    """Whether a cached graph is there and is what this user wrote."""
    try:
        digests = json.loads((place / DIGESTS).read_text())
        mine = place.stat().st_uid == os.getuid()
        return mine and bool(digests) and all(file_digest(place / Path(n).name) == digests[n] for n in digests)
    except (OSError, ValueError, AttributeError):
        return False


def check_cached(place: Path) -> None:
    """Refuse to replace a folder that holds something else than a cached graph."""
    if foreign := foreign_files(place, ("model.onnx", "model.onnx.data", DIGESTS)):
        raise MRCError(f"{place} holds {foreign[0]}, which is of no cached graph; remove it")


def cpu() -> str:
    """What the CPU can do: optimized graphs are laid out for it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line for line in lines if line.startswith("flags")), "")
