"""What each exact saving gives by itself: a step with it undone, against the step as it is.

    python -m mrc_edit.bench.savings CHECKPOINT EXPORT --variant openvino:bfloat16 --size 256

Undone are: what the conditioner computes once an edit (reward attention folded, text keys and values, timestep
biases; here it runs at every step), the prefix that branches share, guidance before the last convolution, and
the branch of weight zero that image guidance 1 drops. Every variant computes the same noise.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from tqdm import tqdm

from ..core.errors import MRCError, run_command
from ..core.files import write_file
from ..core.reward import BEST, NO_FAULTS
from ..core.tables import Table
from ..engine import Engine
from ..engine.noise import generator, normal
from ..engine.text import tokenize
from .latency import INSTRUCTION, open_engine

GUIDANCE = np.array([[7.5, -6.0, -0.5]], dtype=np.float32)
DROPPED = np.array([[7.5, -6.5]], dtype=np.float32)  # image guidance 1
AS_IS, AS_IS_DROPPED = "as it is", "as it is, image guidance 1"


def steps(engine: Engine, size: int) -> dict[str, tuple[str, Callable[[], np.ndarray]]]:
    """By variant: what it is held against, and a step that returns the guided noise `[4, h, w]`."""
    backend = engine.backend
    geometry, state = backend.geometry, generator(0)
    side = size // geometry.vae_scale
    latents, source = (normal(state, (1, geometry.latent_channels, side, side)) for _ in "xs")
    seen = np.concatenate([latents, source], axis=1)
    unseen = np.concatenate([latents, np.zeros_like(source)], axis=1)
    states, pooled = backend.text_encoder(input_ids=tokenize(backend.tokenizer, [INSTRUCTION, "", NO_FAULTS], geometry))
    states, pooled = states.copy(), pooled.copy()
    rewards = {"reward_scores": np.array([BEST], dtype=np.float32), "reward_text": pooled[2:]}

    def conditions():
        timesteps = np.array([500.0], dtype=np.float32)
        return backend.conditioner(timesteps=timesteps, text_states=states[:2], **rewards)

    def prepared(sample: list[np.ndarray], branch: list[int], guidance: np.ndarray) -> Callable[[], np.ndarray]:
        feeds = {"sample": np.concatenate(sample), "branch": np.array(branch), "guidance": guidance}
        text = np.array([0, 1, 1][: len(branch)])
        laid_out = backend.layout(conditions=conditions(), text=text, reward=np.zeros(len(sample), np.int64))
        return lambda: backend.unet(conditions=laid_out, step=0, deep=None, **feeds)[0].copy()

    whole = prepared([seen, unseen], [0, 0, 1], GUIDANCE)
    separate = prepared([seen, seen, unseen], [0, 1, 2], GUIDANCE)
    after = prepared([seen, unseen], [0, 0, 1], np.eye(3, dtype=np.float32))
    dropped = prepared([seen], [0, 0], DROPPED)
    kept = prepared([seen, unseen], [0, 0, 1], np.append(DROPPED, [[0]], axis=1).astype(np.float32))

    def conditioned() -> np.ndarray:
        conditions()
        return whole()[0]

    return {
        AS_IS: (AS_IS, lambda: whole()[0]),
        "conditioner at every step": (AS_IS, conditioned),
        "no shared prefix": (AS_IS, lambda: separate()[0]),
        "guidance after the last convolution": (AS_IS, lambda: np.tensordot(GUIDANCE, after(), 1)[0]),
        AS_IS_DROPPED: (AS_IS_DROPPED, lambda: dropped()[0]),
        "weightless branch computed": (AS_IS_DROPPED, lambda: kept()[0]),
    }


def measure(engine: Engine, size: int, rounds: int) -> list[dict]:
    """One row a variant: median seconds, ratio to what it is held against, relative difference of the noise."""
    variants = steps(engine, size)
    noises = {name: step() for name, (_, step) in variants.items()}  # warm-up, too
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in tqdm(range(rounds), desc="savings", unit="round", disable=None):
        for name, (_, step) in variants.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    rows = []
    for name, (base, _) in variants.items():
        ratios = [ours / theirs for ours, theirs in zip(seconds[name], seconds[base], strict=True)]
        difference = np.linalg.norm(noises[name] - noises[base]) / np.linalg.norm(noises[base])
        rows.append(
            {
                "variant": name,
                "seconds": median(seconds[name]),
                "ratio": median(ratios),
                "difference": float(difference),
            }
        )
    return rows


def markdown(rows: list[dict]) -> str:
    head = ["undone", "step", "times the step as it is", "difference"]
    cells = [
        [row["variant"], f"{row['seconds'] * 1e3:.1f} ms", f"{row['ratio']:.3f}", f"{row['difference']:.1e}"]
        for row in rows
    ]
    return Table("", head, cells).markdown()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mrc_edit.bench.savings", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("export", type=Path, help="its export folder")
    parser.add_argument("--variant", default="onnxruntime", help="backend:precision, as for mrc_edit.bench.latency")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    def run() -> None:
        if args.rounds < 1 or args.size < 64:
            raise MRCError("--rounds is at least 1, --size at least 64")
        engine = open_engine(args.variant, args.checkpoint, args.export, Path())
        if not engine.backend.geometry.rewards:
            raise MRCError(f"{args.checkpoint} has no rewards; the savings are measured on an MRC model")
        rows = measure(engine, args.size, args.rounds)
        print(markdown(rows))
        if args.json:
            write_file(args.json, json.dumps({"variant": args.variant, "size": args.size, "rows": rows}, indent=1))

    sys.exit(run_command(run))


if __name__ == "__main__":
    main()
