"""An export proves itself: every graph against eager float32, at sizes that were not traced."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..core.errors import MRCError
from ..core.fidelity import relative_error
from ..engine.backends import Backend
from ..engine.backends.eager import EagerBackend
from ..engine.backends.onnxruntime import OnnxRuntimeBackend
from ..engine.backends.providers import CPU
from ..engine.graphs import DYNAMIC, GRAPHS, INTEGERS, Dims
from ..engine.manifest import Geometry, Manifest
from ..engine.noise import generator, normal
from ..engine.plan import make_plan
from ..engine.text import tokenize
from ..model.graphs import graph_module
from .trace import constants
from .upcast import upcast_export

# Height and width in pixels, neither of them traced.
SIZES = ((192, 128), (64, 192))
# Greatest relative error of a graph's output. Half precisions have 11 and 8 significant bits and a
# U-Net hundreds of layers.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
TIMESTEPS = np.array([981.0, 301.5], dtype=np.float32)


@dataclass(frozen=True)
class Case:
    """Inputs of all graphs at one size, drawn from a fixed seed.

    Attributes:
        images: `[B, 3, H, W]`, about -1…1; latents: `[B, Z, h, w]`; feature_bias: `[B, C, h, w]` of SmartEdit.
    """

    images: np.ndarray
    latents: np.ndarray
    feature_bias: np.ndarray | None = None


def cases(geometry: Geometry) -> list[Case]:
    state = generator(0)
    drawn = []
    for batch, (height, width) in enumerate(SIZES, start=1):
        rows, columns = height // geometry.vae_scale, width // geometry.vae_scale
        images = np.tanh(normal(state, (batch, 3, height, width)))
        latents = normal(state, (batch, geometry.latent_channels, rows, columns))
        features = (batch, geometry.feature_channels, rows, columns)
        drawn.append(Case(images, latents, normal(state, features) if geometry.feature_channels else None))
    return drawn


def without_judge() -> list[str]:
    """Graphs whose reference is their own module."""
    return [name for name, graph in GRAPHS.items() if not graph.judged_by]


def outputs(backend: Backend, case: Case) -> dict[str, np.ndarray]:
    """The outputs that graphs are judged by, by graph."""
    geometry, batch = backend.geometry, len(case.images)
    reward = ((5.0, 3.5, 0.0), "None; the sky changed; None")
    plan = make_plan(["make it brighter", "turn the circle red"][:batch], [(reward, reward, reward)] * batch, 7.5, 1.5,
                     embedded=geometry.embeds_guidance)  # fmt: skip
    texts = [*(text for text in plan.texts if isinstance(text, str)), reward[1]]
    states, pooled = backend.text_encoder(input_ids=tokenize(backend.tokenizer, texts, geometry))
    conditions = backend.conditioner(
        timesteps=TIMESTEPS,
        text_states=states[: len(plan.texts)],
        reward_scores=np.array([scores for scores, _ in plan.rewards], dtype=np.float32),
        reward_text=np.repeat(pooled[-1:], len(plan.rewards), axis=0),
        feature_bias=case.feature_bias,
        guidance_scales=plan.scales if geometry.embeds_guidance else None,
    )
    visible = np.where(plan.sees_image[:, None, None, None], case.latents[::-1][plan.image] * 3, np.float32(0))
    sample = np.concatenate([case.latents[plan.image], visible], axis=1)
    unet = backend.guided_unet(conditions, branch=plan.branch, text=plan.text, reward=plan.reward, image=plan.image)
    noise = unet.full(1, sample, plan.guidance).copy()
    # with the deep features of its own step, the shallow graph computes what the whole one does
    shallow = unet.shallow(1, sample, plan.guidance).copy() if backend.reuses_features else noise
    return {
        "text_encoder": np.concatenate([states.reshape(len(texts), -1), pooled], axis=1),
        "vae_encoder": backend.vae_encoder(images=case.images),
        "vae_decoder": backend.vae_decoder(latents=case.latents),
        "unet": noise,
        "unet_shallow": shallow,
    }


@torch.inference_mode()
def eager_outputs(backend: EagerBackend, case: Case) -> dict[str, np.ndarray]:
    """`outputs` of the eager pipeline, and for graphs that nothing judges those of their module."""
    own = {}
    for name in without_judge():
        row = GRAPHS[name]
        module = graph_module(row.module, getattr(backend.checkpoint, row.part))
        arrays = draw_inputs(row.inputs, constants(backend.checkpoint), case)
        own[name] = flat([tensor.numpy() for tensor in module(**{k: torch.from_numpy(v) for k, v in arrays.items()})])
    return outputs(backend, case) | own


def exported_outputs(backend: OnnxRuntimeBackend, case: Case) -> dict[str, np.ndarray]:
    """The same of an export."""
    own = {}
    for name in without_judge():
        described = backend.artifact(name).inputs
        constant = {
            str(dim): size
            for key, dims in GRAPHS[name].inputs.items()
            for dim, size in zip(dims, described[key][1:], strict=True)
        }
        arrays = draw_inputs(GRAPHS[name].inputs, constant, case)
        own[name] = flat(list(backend.run(name, **arrays).values()))
    return outputs(backend, case) | own


def draw_inputs(inputs: dict[str, Dims], constant: dict[str, int], case: Case) -> dict[str, np.ndarray]:
    """Random inputs of a graph; every dynamic dimension has another size than in the traced example."""
    batch, _, height, width = case.images.shape
    rows, columns = case.latents.shape[2:]
    sizes: dict[str, int] = {name: size - 1 for name, size in DYNAMIC.items()}
    sizes |= {"batch": batch, "height": height, "width": width, "rows": rows, "columns": columns}
    state = np.random.RandomState(0)
    drawn = {}
    for name, dims in inputs.items():
        shape = [dim if isinstance(dim, int) else (constant | sizes)[dim] for dim in dims]
        array = state.standard_normal(shape)
        drawn[name] = np.zeros(shape, np.int64) if name in INTEGERS else array.astype(np.float32)
    return drawn


def flat(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([array.ravel() for array in arrays])


def validate(folder: Path, manifest: Manifest, expected: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Run what was written with ONNX Runtime; bfloat16 graphs, which it has no kernels for, are upcast first.

    Returns and raises as `differences`.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix="upcast-") as scratch:
        runnable = folder
        if manifest.precision == "bfloat16":
            runnable = Path(scratch)
            upcast_export(folder, runnable, manifest)
        backend = OnnxRuntimeBackend(runnable, provider=CPU, cached=False)
        actual = [exported_outputs(backend, case) for case in cases(manifest.geometry)]
    return differences(expected, actual, manifest.precision, folder)


def differences(
    expected: list[dict[str, np.ndarray]], actual: list[dict[str, np.ndarray]], precision: str, folder: Path
) -> dict[str, float]:
    """By graph the greatest relative error over all cases.

    Raises:
        MRCError: an error that the precision does not explain.
    """
    errors = {
        name: max(relative_error(have[name], want[name]) for want, have in zip(expected, actual, strict=True))
        for name in expected[0]
    }
    for name, error in errors.items():
        if not error <= TOLERANCE[precision]:  # also true of NaN
            raise MRCError(
                f"the exported {name} differs from eager by {error:.1e} (relative, {precision}; "
                f"at most {TOLERANCE[precision]:.0e}); {folder} was not written, try --dtype float32"
            )
    return {name: errors[graph.judged_by or name] for name, graph in GRAPHS.items()}
