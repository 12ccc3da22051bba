"""Edit an image with an export, in numpy, onnxruntime, tokenizers and Pillow alone (docs/graphs.md explains the steps).

python docs/graphs/edit.py EXPORT IMAGE INSTRUCTION OUTPUT
"""

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer

NO_FAULTS = "None; None; None"


def edit(export: Path, image: Image.Image, instruction: str, seed=0, scores=(5, 5, 5), faults=NO_FAULTS, **changes):
    """`changes`: of the model's defaults, such as `num_inference_steps=4`."""
    manifest = json.loads((export / "manifest.json").read_text())
    config = json.loads((export / "scheduler" / "scheduler_config.json").read_text())
    geometry, settings = manifest["geometry"], manifest["defaults"] | changes
    sampler, steps = settings["scheduler"] or manifest["scheduler"], settings["num_inference_steps"]
    assert sampler in ("euler", "euler_ancestral") and config["timestep_spacing"] == "linspace"

    def run(graph: str, **values) -> list[np.ndarray]:  # the graph's first listed file, with the inputs that it has
        path = next(a["path"] for a in manifest["artifacts"] if (a["role"], a["runtime"]) == (graph, "onnx"))
        if graph not in sessions:
            sessions[graph] = onnxruntime.InferenceSession(export / path, providers=["CPUExecutionProvider"])
        return sessions[graph].run(None, {i.name: values[i.name] for i in sessions[graph].get_inputs()})

    sessions: dict[str, onnxruntime.InferenceSession] = {}
    random = np.random.RandomState(seed)  # draws what torch.Generator("cpu").manual_seed(seed) does

    def normal(shape):  # of a multiple of 16 values, as torch.randn
        uniform = (random.randint(0, 2**32, np.prod(shape), dtype=np.uint32) & 0xFFFFFF).astype(np.float32) * 2**-24
        first, second = np.moveaxis(uniform.astype(np.float32).reshape(-1, 2, 8), 1, 0)
        radius, angle = np.sqrt(-2 * np.log(1 - first)), np.float32(2 * np.pi) * second
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(shape)

    # 1. Texts: the instruction, the empty text, and the text of the faults
    tokenizer = Tokenizer.from_file(str(export / "tokenizer" / "tokenizer.json"))
    tokenizer.no_padding()
    ids = np.full((3, geometry["text_length"]), geometry["pad_token_id"], dtype=np.int64)
    for row, text in zip(ids, (instruction, "", faults), strict=True):
        tokens = tokenizer.encode(text).ids
        row[: len(tokens)] = tokens if len(tokens) <= len(row) else [*tokens[: len(row) - 1], geometry["eos_token_id"]]
    states, pooled = run("text_encoder", input_ids=ids)

    # 2. The image, of a size that the model takes
    size = [max(1, side // geometry["multiple"]) * geometry["multiple"] for side in image.size]
    pixels = np.asarray(ImageOps.fit(image.convert("RGB"), size, Image.Resampling.LANCZOS), dtype=np.float32)
    (source,) = run("vae_encoder", images=pixels.transpose(2, 0, 1)[None] / np.float32(127.5) - 1)

    # 3. Noise levels σ and timesteps, then all that depends on texts, reward and timesteps alone
    betas = np.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, config["num_train_timesteps"]) ** 2
    alphas = np.cumprod(1 - betas)
    timesteps = np.linspace(0, len(alphas) - 1, steps)[::-1] if steps > 1 else np.zeros(1)
    sigmas = np.append(np.interp(timesteps, np.arange(len(alphas)), np.sqrt(1 / alphas - 1)), 0)
    reward = {"reward_scores": np.array([scores], dtype=np.float32), "reward_text": pooled[2:]}
    time_bias, text_kv, *folded = run(
        "conditioner", timesteps=timesteps.astype(np.float32), text_states=states[:2], **reward
    )

    # 4. Two inputs, with and without the source; three branches: with text and image, image alone, neither
    branch, texts = np.array([0, 0, 1]), [0, 1, 1]
    text = settings["guidance_scale"]
    picture = settings["image_guidance_scale"] if text > 1 else 1  # as in diffusers
    guidance = np.array([[text, picture - text, 1 - picture]], dtype=np.float32)
    constant = {"branch": branch, "guidance": guidance, "text_kv": text_kv[texts]}
    constant |= {
        name: np.repeat(value, 2, 0)
        for name, value in zip(("gate", "gate_bias", "base", "update"), folded, strict=False)
    }
    sees = np.concatenate([source, np.zeros_like(source)])

    # 5. The loop: Euler's method, ancestral or not
    latents = normal(source.shape) * np.float32(sigmas.max())
    for step, (here, after) in enumerate(pairwise(sigmas)):
        scaled = (latents / np.hypot(here, 1)).astype(np.float32)
        sample = np.concatenate([np.repeat(scaled, 2, 0), sees], axis=1)
        predicted, _ = run("unet", sample=sample, time_bias=np.repeat(time_bias[step], 2, 0), **constant)
        if config["prediction_type"] == "v_prediction":
            predicted = (latents * here / np.hypot(here, 1) + predicted) / np.hypot(here, 1)
        fresh = after * np.sqrt(1 - (after / here) ** 2) if sampler == "euler_ancestral" else 0
        latents = latents + (np.sqrt(after**2 - fresh**2) - here) * predicted
        latents = (latents + fresh * normal(source.shape) if sampler == "euler_ancestral" else latents).astype(
            np.float32
        )

    # 6. The image again
    (images,) = run("vae_decoder", latents=latents)
    return Image.fromarray(((images[0].transpose(1, 2, 0) / 2 + 0.5).clip(0, 1) * 255).round().astype(np.uint8))


if __name__ == "__main__":
    export, image, instruction, output = sys.argv[1:]
    edit(Path(export), Image.open(image), instruction).save(output)
