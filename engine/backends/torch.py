"""PyTorch made fast: the step graph over the kernels, channels last, on a GPU as CUDA graphs."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...core.adapters import ADAPTERS
from ...core.errors import MRCError
from ...core.layout import LAYOUT
from ...core.precision import PRECISIONS, TF32
from ...kernels import ops
from ...model import Checkpoint
from ...model.adapters import load_adapted
from ...model.graphs import graph_module
from ...model.layers import merge_projections
from ...model.scheduler import scheduler_config
from ..failures import computing
from ..graphs import EACH_STEP, FEATURE_BIAS, GRAPHS
from ..loop import OnStep, check_latents, start, step_noise
from ..plan import Plan
from ..step_table import SamplerTable, clipping
from ..text import whole_texts
from .base import Conditions, DeviceLoop, GuidedUNet, feature_condition, guidance_condition
from .devices import float32_products, torch_device, use_threads
from .eager import geometry
from .graphs import Feeds, GraphBackend, GraphUNet, Runner
from .reading import load_reader
from .recordings import DeviceMemory, Recorded


def load(
    folder: Path,
    precision: str | None = None,
    device: str | None = None,
    compile: bool = False,
    threads: int | None = None,
    **options: Any,
) -> "TorchBackend":
    """Open a checkpoint.

    Args:
        precision: float32, bfloat16, float16 (on a GPU), or tf32 (on a GPU: float32 with TF32 products). By default
            bfloat16 on a GPU and float32 on a CPU.
        device: by default the GPU, where there is one.
        compile: compile the step graphs with `torch.compile`, anew for each set of shapes.
        threads: of the CPU, in the whole process.
        options: keywords of `load_adapted` and of `load_reader`.
    """
    place = torch_device(device)
    names = PRECISIONS if place.type == "cpu" else (*PRECISIONS, TF32)
    if (precision, place.type) == ("float16", "cpu"):
        raise MRCError("precision is 'float16', which PyTorch computes slowly on a CPU; use bfloat16 or float32")
    if precision not in (None, *names):
        raise MRCError(f"precision is {precision!r}; the torch backend has {', '.join(names)} on {place.type}")
    if compile and place.type == "cpu":
        raise MRCError("compile is True, and the step graphs are compiled for a GPU; leave it out on a CPU")
    use_threads(threads)
    own = "float32" if place.type == "cpu" else "bfloat16"
    loading = {name: options.pop(name) for name in (*LAYOUT, *ADAPTERS) if name in options}
    backend = TorchBackend(load_adapted(folder, **loading)[0], place, precision or own, compile)
    backend.reader = load_reader(folder, place, **options)
    return backend


class TorchBackend(GraphBackend[Tensor]):
    """One module a graph on one device; graphs that may not be half stay in float32."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, precision: str, compile: bool = False) -> None:
        self.precision = precision
        self.geometry, self.defaults = geometry(checkpoint), checkpoint.defaults
        self.scheduler = scheduler_config(checkpoint.scheduler)
        self.tokenizer = whole_texts(checkpoint.tokenizer.backend_tokenizer)
        self.device = device
        on_card = device.type == "cuda"
        self.device_loop = TorchLoop(device) if on_card else None
        for module in (checkpoint.unet, checkpoint.vae):
            nn.Module.to(module, device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        checkpoint.text_encoder.to(device)
        merge_projections(checkpoint.unet)
        parts = {name: getattr(checkpoint, graph.part) for name, graph in GRAPHS.items()}
        self.modules: dict[str, nn.Module] = {}
        dtype = torch.float32 if precision == TF32 else getattr(torch, precision)
        if dtype != torch.float32:  # copied before their weights are rounded
            self.modules = {
                name: copy_of_own(graph_module(graph.module, parts[name]))
                for name, graph in GRAPHS.items()
                if not graph.half
            }
            for part in (checkpoint.unet, checkpoint.vae, checkpoint.text_encoder):
                nn.Module.to(part, dtype)  # not module.to: see model.checkpoint.fill
        compiled = EACH_STEP if compile else ()
        for name in GRAPHS.keys() - self.modules.keys():
            self.modules[name] = graph_module(GRAPHS[name].module, parts[name], fused=name not in compiled)
        self.wide: dict[str, nn.Module] = {}
        self.calls: dict[str, Callable[..., tuple[Tensor, ...]]] = dict(self.modules)
        if on_card:
            memory = DeviceMemory(device)
            for name, module in self.modules.items():
                self.calls[name] = Recorded(compiled_step(module) if name in compiled else module, dtype, memory)

    def to_device(self, array: np.ndarray | Tensor) -> Tensor:
        if isinstance(array, Tensor):
            return array
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        # from pinned memory a copy waits for nothing that the GPU still computes
        return tensor if self.device.type == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)

    def to_numpy(self, value: Tensor) -> np.ndarray:
        return value.cpu().contiguous().numpy()

    def runner(self, graph: str) -> Runner:
        return self.running(self.calls[graph], graph)

    def wide_runner(self, graph: str) -> Runner | None:
        if self.precision != "float16":
            return None
        if graph not in self.wide:
            self.wide[graph] = copy.deepcopy(self.modules[graph]).float()
        return self.running(self.wide[graph], graph)

    def running(self, call: Callable[..., tuple[Tensor, ...]], graph: str) -> Runner:
        names = GRAPHS[graph].outputs

        @torch.inference_mode()
        def run(feeds: Feeds) -> Feeds:
            with float32_products(self.device, self.precision == TF32):
                return dict(zip(names, call(**feeds), strict=False))  # a plain model has no reward tensors

        return run

    def conditioner(
        self, *, feature_bias: np.ndarray | None = None, guidance_scales: np.ndarray | None = None, **arrays: np.ndarray
    ) -> Conditions:
        """The conditions stay on the device."""
        arrays = {name: array for name, array in arrays.items() if self.geometry.rewards or "reward_" not in name}
        arrays |= guidance_condition(self.geometry, guidance_scales)
        features = feature_condition(self.geometry, feature_bias)
        conditions = self.runner("conditioner")({name: self.to_device(array) for name, array in arrays.items()})
        return conditions | {name: self.to_device(array) for name, array in features.items()}

    def guided_unet(
        self, conditions: Conditions, *, branch: np.ndarray, text: np.ndarray, reward: np.ndarray, image: np.ndarray
    ) -> "TorchUNet":
        return TorchUNet(self, conditions, branch, text, reward, image)


def copy_of_own(module: Any) -> nn.Module:
    """A copy of a graph's module that shares the parameters which it does not compute with."""
    own = {id(parameter) for parameter in module.own()}
    shared = {id(parameter): parameter for parameter in module.parameters() if id(parameter) not in own}
    return copy.deepcopy(module, shared)


def compiled_step(module: nn.Module) -> Callable[..., tuple[Tensor, ...]]:
    compiled = torch.compile(module, dynamic=False, fullgraph=True)

    def call(**inputs: Tensor) -> tuple[Tensor, ...]:
        # at its own limit PyTorch goes on uncompiled
        with torch._dynamo.config.patch(recompile_limit=1000, fail_on_recompile_limit_hit=True):
            return compiled(**inputs)

    return call


class TorchUNet(GraphUNet[Tensor]):
    """The step graphs, with rows taken on the device: an index on the host would make it wait."""

    def placed(
        self, conditions: Conditions, text: np.ndarray, row: np.ndarray, image: np.ndarray
    ) -> tuple[list[Tensor], Feeds]:
        to_device: Any = self.backend.to_device
        images = to_device(image) if FEATURE_BIAS.keys() & conditions.keys() else image
        return super().placed(conditions, to_device(text), to_device(row), images)


class TorchLoop(DeviceLoop):
    """The denoising loop on the device; `kernels.ops.sampler_step` advances the latents in place."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @torch.inference_mode()
    def denoise(
        self,
        unet: GuidedUNet,
        plan: Plan,
        table: SamplerTable,
        source: np.ndarray,
        generators: list[np.random.RandomState],
        on_step: OnStep | None,
    ) -> np.ndarray:
        assert isinstance(unet, GraphUNet)
        to_device, to_numpy = unet.backend.to_device, unet.backend.to_numpy
        first, visible = start(plan, table, source, generators)
        latents, image, guidance = to_device(first), to_device(plan.image), to_device(plan.guidance)
        scale, coefficients, of_denoised = (
            to_device(values.astype(np.float32)) for values in (table.input_scale, table.coefficients, table.denoised)
        )
        denoised = torch.zeros_like(latents)
        sample = torch.cat([latents[image] * scale[0], to_device(visible)], dim=1)
        for step in range(len(table.timesteps)):
            with computing(f"unet at step {step + 1} of {len(table.timesteps)}"):
                noise = unet.run_full(unet.feeds(step, sample, guidance))["noise"].contiguous()
            drawn = step_noise(table, generators, source.shape)
            fresh = None if drawn is None else to_device(drawn)
            if table.clip is not None:
                fresh = clipping(table, step, noise, latents)
            next_scale = scale[min(step + 1, len(scale) - 1)].reshape(1)
            ops.sampler_step(
                noise, latents, denoised, fresh, coefficients[step], of_denoised[step], next_scale,
                image, sample,
            )  # fmt: skip
            replaced = on_step(step, to_numpy(latents)) if on_step else None
            if replaced is not None:
                latents.copy_(torch.from_numpy(check_latents(replaced, source.shape)))
                sample[:, : latents.shape[1]] = latents[image] * next_scale
        return to_numpy(latents)
