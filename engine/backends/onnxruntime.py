"""ONNX Runtime on an export folder; no PyTorch."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime import InferenceSession, OrtValue, SessionOptions
from tqdm import tqdm

from ...core.cpu import cpu_features
from ...core.errors import MRCError
from ..failures import computing
from ..graphs import FEATURE_BIAS, FOLDED, GRAPHS
from ..manifest import Artifact, files_of
from ..profiles import Profile, profile, sides
from .base import Conditions, feature_condition, guidance_condition
from .bound import SessionRunner, Slice
from .engine_cache import engines_in, rtx_machine, tensorrt_machine, timings
from .exported import ExportBackend, cache_folder
from .graph_cache import kept, place_of
from .graphs import GraphUNet
from .providers import CPU, CUDA, PREFIX, RTX, TENSORRT, chain, choose, device_of, open_session
from .rows import gather_graph

LARGE = 64 << 20  # bytes of weights from which an optimized graph is worth its place on disk


def load(
    folder: Path,
    precision: str | None = None,
    provider: str | None = None,
    provider_options: Mapping[str, object] | None = None,
    sizes: tuple[int, int, int] | None = None,
    max_batch: int | None = None,
    threads: int | None = None,
) -> "OnnxRuntimeBackend":
    return OnnxRuntimeBackend(folder, precision, provider, provider_options, sizes, max_batch, threads=threads)


class OnnxRuntimeBackend(ExportBackend[OrtValue]):
    """One session a graph, with inputs and outputs bound.

    Args:
        provider, provider_options: by ONNX Runtime's names; CUDA where this package of it has that, else the CPU.
        sizes: least, best and greatest pixels of a side, and `max_batch` images a pass, that a provider builds
            engines for; by default half, once and one and a half times the model's own side, and one image.
        cached: keep optimized graphs and engines on disk.
        threads: of each session on the CPU.
    """

    def __init__(
        self,
        folder: Path,
        precision: str | None = None,
        provider: str | None = None,
        provider_options: Mapping[str, object] | None = None,
        sizes: tuple[int, int, int] | None = None,
        max_batch: int | None = None,
        cached: bool = True,
        threads: int | None = None,
    ) -> None:
        super().__init__(folder, precision)
        self.cached, self.threads = cached, threads
        self.provider, self.options = choose(provider, provider_options)
        if self.provider not in PREFIX and (sizes, max_batch) != (None, None):
            raise MRCError(
                f"sizes and max_batch are for providers that build engines ({', '.join(PREFIX)}) and the provider is "
                f"{self.provider}, which takes all sizes; leave them out"
            )
        self.max_batch = 1 if max_batch is None else max_batch
        self.sizes = sides(self.geometry, sizes, self.max_batch)
        self.device, self.device_id = device_of(self.provider), int(self.options.get("device_id", 0))
        # The provider that takes rows of the conditions on the GPU; without one the host does
        self.gathers = CUDA if self.provider in (CUDA, TENSORRT) else ""
        self.gathering: dict[int, InferenceSession] = {}
        self.wide: dict[str, InferenceSession] = {}  # graphs in float32
        with tqdm(GRAPHS, desc="load export", leave=False, disable=None) as names:
            self.sessions = {name: self.session(self.artifact(name)) for name in names}

    def profile(self, artifact: Artifact) -> Profile | None:
        """The shapes that the provider builds an engine for; None where it takes all."""
        if self.provider not in PREFIX:
            return None
        return profile(artifact, self.sizes, self.geometry.vae_scale, self.max_batch)

    def session_options(self) -> SessionOptions:
        options = SessionOptions()
        options.intra_op_num_threads = self.threads or 0  # 0 leaves it to ONNX Runtime
        return options

    def session(self, artifact: Artifact) -> InferenceSession:
        """Open a graph: what was made of it earlier for this machine, if that is there."""
        plain = partial(self.open, artifact, self.session_options())
        if not self.cached or self.provider not in (CPU, TENSORRT, RTX):
            return plain()
        files = [artifact.path, *files_of(self.manifest, artifact)]
        size = sum((self.folder / name).stat().st_size for name in files if (self.folder / name).is_file())
        if (self.provider == CPU and size < LARGE) or (cache := cache_folder()) is None:
            return plain()
        make, reopen, machine = {
            CPU: (self.optimize, self.open_optimized, cpu_features),  # graphs are laid out for what the CPU can do
            TENSORRT: (self.build, self.open_engine, tensorrt_machine),
            RTX: (self.build_context, self.open_context, rtx_machine),
        }[self.provider]
        digests = [self.manifest.files.get(name, "") for name in files]
        depends_on = [onnxruntime.__version__, machine(), str(self.chain(artifact)[self.provider]), *digests]
        place = place_of(cache, f"onnxruntime-{artifact.role}-{artifact.precision}", depends_on)
        return kept(place, partial(make, artifact), partial(reopen, artifact), plain)

    def optimize(self, artifact: Artifact, place: Path) -> None:
        """Write a graph optimized for this machine."""
        options = self.session_options()
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "model.onnx.data")
        options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
        options.optimized_model_filepath = str(place / "model.onnx")
        self.open(artifact, options)

    def open_optimized(self, artifact: Artifact, place: Path) -> InferenceSession:
        options = self.session_options()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # done already
        return open_session(named(artifact), str(place / "model.onnx"), options, self.chain(artifact))

    def build(self, artifact: Artifact, place: Path) -> None:
        """Build the engines of a graph with TensorRT, which takes minutes, with the timings of earlier builds."""
        timed = {"trt_timing_cache_enable": "1", "trt_timing_cache_path": str(place)}
        with timings(place):
            self.open(artifact, self.session_options(), engines_in(place) | timed)

    def open_engine(self, artifact: Artifact, place: Path) -> InferenceSession:
        return self.open(artifact, self.session_options(), engines_in(place))

    def build_context(self, artifact: Artifact, place: Path) -> None:
        """Build the engines of a graph with TensorRT for RTX, and a graph that holds them."""
        options = self.session_options()
        options.add_session_config_entry("ep.context_enable", "1")
        options.add_session_config_entry("ep.context_embed_mode", "0")
        options.add_session_config_entry("ep.context_file_path", str(place / "model.onnx"))
        self.open(artifact, options)

    def open_context(self, artifact: Artifact, place: Path) -> InferenceSession:
        return open_session(named(artifact), str(place / "model.onnx"), self.session_options(), self.chain(artifact))

    def chain(self, artifact: Artifact) -> dict[str, dict[str, str]]:
        return chain(self.provider, self.options, artifact, self.profile(artifact))

    def open(
        self, artifact: Artifact, options: SessionOptions, own: Mapping[str, str] | None = None
    ) -> InferenceSession:
        """Open a graph from memory, so that what was checked is what is used; no other file of it is read.

        Args:
            own: options of the provider for this session alone.
        """
        graph, external = self.content(artifact)
        sizes = [len(data) for data in external.values()]
        options.add_external_initializers_from_files_in_memory(list(external), list(external.values()), sizes)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
        providers = self.chain(artifact)
        providers[self.provider] |= own or {}
        return open_session(named(artifact), graph, options, providers)

    def to_device(self, array: np.ndarray) -> OrtValue:
        return OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self.device, self.device_id)

    def to_numpy(self, value: OrtValue) -> np.ndarray:
        return value.numpy()

    def runner(self, graph: str) -> SessionRunner:
        kept = ["deep", *(GRAPHS["conditioner"].outputs if self.gathers else ())]
        shapes = self.profile(self.artifact(graph))
        return SessionRunner(self.sessions[graph], self.device, self.device_id, kept, graph, shapes)

    def conditioner(
        self, *, timesteps: np.ndarray, text_states: np.ndarray, reward_scores: np.ndarray, reward_text: np.ndarray,
        feature_bias: np.ndarray | None = None, guidance_scales: np.ndarray | None = None,
    ) -> Conditions:  # fmt: skip
        arrays = {"timesteps": timesteps, "text_states": text_states}
        if self.geometry.rewards:
            arrays |= {"reward_scores": reward_scores, "reward_text": reward_text}
        arrays |= guidance_condition(self.geometry, guidance_scales)
        features = feature_condition(self.geometry, feature_bias)
        if not self.gathers:
            return self.run("conditioner", **arrays) | features
        conditions = self.runner("conditioner")({name: self.to_device(array) for name, array in arrays.items()})
        return conditions | {name: self.to_device(array) for name, array in features.items()}

    def guided_unet(
        self, conditions: Conditions, *, branch: np.ndarray, text: np.ndarray, reward: np.ndarray, image: np.ndarray
    ) -> GraphUNet:
        return (BoundUNet if self.gathers else GraphUNet)(self, conditions, branch, text, reward, image)

    def rows(self, value: OrtValue, index: OrtValue, axis: int = 0) -> OrtValue:
        """Rows `index` `[N]` of a value along `axis`, copied on the device."""
        if axis not in self.gathering:
            providers = {self.gathers: {"device_id": str(self.device_id)} if self.gathers == CUDA else {}}
            self.gathering[axis] = open_session("rows", gather_graph(axis), self.session_options(), providers)
        run = SessionRunner(self.gathering[axis], self.device, self.device_id, ("rows",))
        return run({"data": value, "index": index})["rows"]

    def wide_runner(self, graph: str) -> SessionRunner | None:
        artifact = self.manifest.artifact(graph, "onnx", "float32")
        if self.manifest.precision == "float32" or artifact is None:
            return None
        if graph not in self.wide:
            self.wide[graph] = self.session(artifact)
        return SessionRunner(self.wide[graph], self.device, self.device_id)


class BoundUNet(GraphUNet[Any]):
    """The step graphs with the conditions of some branches, taken from the conditioner's outputs on the device.

    A step then copies its sample to the GPU and the noise back. The sampler's arithmetic stays on the host: as a graph
    of its own it would be as many launches as two small copies take, and every run waits for the GPU all the same.
    """

    backend: OnnxRuntimeBackend

    def placed(
        self, conditions: Conditions, text: np.ndarray, row: np.ndarray, image: np.ndarray
    ) -> tuple[list[Any], dict[str, Any]]:
        rows = self.backend.rows
        with computing("conditioner"):
            texts, rewards = (self.backend.to_device(index.astype(np.int64)) for index in (text, row))
            table = rows(conditions["time_bias"], rewards, axis=1)
            index = {"text_kv": texts, **dict.fromkeys(FOLDED, rewards)}
            if FEATURE_BIAS.keys() & conditions.keys():
                index |= dict.fromkeys(FEATURE_BIAS, self.backend.to_device(image.astype(np.int64)))
            shared = {name: rows(conditions[name], of) for name, of in index.items() if name in conditions}
        return [Slice(table, step) for step in range(table.shape()[0])], shared


def named(artifact: Artifact) -> str:
    """A graph in messages."""
    hint = " (bfloat16, for which ONNX Runtime's CPU provider has no convolution)"
    return artifact.path + (hint if artifact.precision == "bfloat16" else "")
