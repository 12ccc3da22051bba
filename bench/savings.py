"""What each exact saving gives alone: a step with it undone, compared with the step as it is.

    python bench/savings.py CHECKPOINT EXPORT --variant openvino:bfloat16 --size 256

Undone are: what the conditioner computes once an edit (reward attention folded, text keys and values, timestep
biases; here it runs at every step), the prefix that branches share, guidance before the last convolution, and
the branch of weight zero that image guidance 1 drops. Every case computes the same noise.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from mrc_edit.bench.machine import describe_machine
from mrc_edit.bench.options import command_parser, require_at_least
from mrc_edit.bench.report import Column, Row, add_output_options, table, write_report
from mrc_edit.bench.runner import ratios, run_in_turn, seconds_of
from mrc_edit.bench.workload import INSTRUCTION, parse_variant
from mrc_edit.core.errors import MRCError, run_command
from mrc_edit.core.fidelity import relative_error
from mrc_edit.core.reward import BEST, NO_FAULTS
from mrc_edit.engine import Engine
from mrc_edit.engine.noise import generator, normal
from mrc_edit.engine.text import tokenize

Step = Callable[[], np.ndarray]  # returns the guided noise `[4, h, w]`

GUIDANCE = np.array([[7.5, -6.0, -0.5]], dtype=np.float32)
DROPPED = np.array([[7.5, -6.5]], dtype=np.float32)  # image guidance 1
AS_IS, AS_IS_DROPPED = "as it is", "as it is, image guidance 1"
COLUMNS = [
    Column("undone", "{variant}"),
    Column("step", "{seconds:.1f} ms", scale=1e3),
    Column("times the step as it is", "{ratio:.3f}"),
    Column("difference", "{difference:.1e}"),
]


def steps(engine: Engine, size: int) -> dict[str, tuple[str, Step]]:
    """By case: the case it is compared with, and its step."""
    backend = engine.backend
    geometry, state = backend.geometry, generator(0)
    side = size // geometry.vae_scale
    latents, source = (normal(state, (1, geometry.latent_channels, side, side)) for _ in range(2))
    with_image = np.concatenate([latents, source], axis=1)
    without_image = np.concatenate([latents, np.zeros_like(source)], axis=1)
    states, pooled = backend.text_encoder(input_ids=tokenize(backend.tokenizer, [INSTRUCTION, "", NO_FAULTS], geometry))
    states, pooled = states.copy(), pooled.copy()
    rewards = {"reward_scores": np.array([BEST], dtype=np.float32), "reward_text": pooled[2:]}

    def conditions():
        timesteps = np.array([500.0], dtype=np.float32)
        return backend.conditioner(timesteps=timesteps, text_states=states[:2], **rewards)

    def prepared(sample: list[np.ndarray], branch: list[int], guidance: np.ndarray) -> Step:
        inputs, text = np.concatenate(sample), np.array([0, 1, 1][: len(branch)])
        reward = np.zeros(len(sample), np.int64)
        unet = backend.guided_unet(conditions(), branch=np.array(branch), text=text, reward=reward, image=reward)
        return lambda: unet.full(0, inputs, guidance).copy()

    whole = prepared([with_image, without_image], [0, 0, 1], GUIDANCE)
    separate = prepared([with_image, with_image, without_image], [0, 1, 2], GUIDANCE)
    after = prepared([with_image, without_image], [0, 0, 1], np.eye(3, dtype=np.float32))
    dropped = prepared([with_image], [0, 0], DROPPED)
    weightless = prepared([with_image, without_image], [0, 0, 1], np.append(DROPPED, [[0]], axis=1).astype(np.float32))

    def conditioned() -> np.ndarray:
        conditions()
        return whole()[0]

    return {
        AS_IS: (AS_IS, lambda: whole()[0]),
        "conditioner at every step": (AS_IS, conditioned),
        "no shared prefix": (AS_IS, lambda: separate()[0]),
        "guidance after the last convolution": (AS_IS, lambda: np.tensordot(GUIDANCE, after(), 1)[0]),
        AS_IS_DROPPED: (AS_IS_DROPPED, lambda: dropped()[0]),
        "weightless branch computed": (AS_IS_DROPPED, lambda: weightless()[0]),
    }


def time_savings(engine: Engine, size: int, rounds: int) -> list[Row]:
    """One row a case: median seconds, ratio to the case it is compared with, relative difference of the noise."""
    cases = steps(engine, size)
    noises = {name: step() for name, (_, step) in cases.items()}  # warm-up, too
    runs = {name: (lambda step=step: seconds_of(step)) for name, (_, step) in cases.items()}
    seconds = run_in_turn(runs, rounds, unit="step")
    return [
        {
            "variant": name,
            "seconds": median(seconds[name]),
            "ratio": ratios(seconds[name], seconds[base])["median"],
            "difference": relative_error(noises[name], noises[base]),
        }
        for name, (base, _) in cases.items()
    ]


def arguments() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    parser.add_argument("checkpoint", type=Path, help="MRC checkpoint folder")
    parser.add_argument("export", type=Path, help="its export folder")
    parser.add_argument("--variant", default="onnxruntime", help="backend:precision (default %(default)s)")
    parser.add_argument("--size", type=int, default=256, help="pixels of a side, a multiple of 64 (default 256)")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each case (default 5)")
    add_output_options(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    require_at_least(args, rounds=1, size=64)
    engine = parse_variant(args.variant, args.checkpoint, args.export).open()
    if not engine.backend.geometry.rewards:
        raise MRCError(f"{args.checkpoint} has no rewards; the savings are measured on an MRC model")
    rows = time_savings(engine, args.size, args.rounds)
    print(table(COLUMNS, rows).markdown())
    report = {"variant": args.variant, "size": args.size, "machine": describe_machine(), "rows": rows}
    write_report(args, report, rows)


if __name__ == "__main__":
    parsed = arguments().parse_args()
    sys.exit(run_command(lambda: run(parsed)))
