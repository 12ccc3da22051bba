"""All settings of a training run."""

from dataclasses import asdict, dataclass
from typing import Annotated, get_type_hints

from ..core.errors import MRCError
from ..core.layout import LAYOUT
from ..core.schema import Between, fit

CHOICES: dict[str, tuple[int | str, ...]] = {
    "stage": (1, 2, "distill"),
    "reward_injection": ("time", "blocks"),
    "reward_only": ("all", "scores", "text", "latents", "timestep"),
    "lr_schedule": ("constant", "cosine"),
    "mixed_precision": ("no", "bf16", "fp16"),
}


@dataclass(frozen=True)
class TrainConfig:
    """One run of `mrc-train`: one flag a field, with the field's text as its help.

    Defaults are InstructPix2Pix's where a preset says nothing else.

    Raises:
        MRCError: a value out of range, or settings that exclude each other.
    """

    init: Annotated[str, "checkpoint to start from: folder, or OWNER/NAME of the Hugging Face hub"]
    data: Annotated[str, "data set, or miniature:N for N triplets of the miniature world"]
    out: Annotated[str, "folder of the run; the trained checkpoint is OUT/checkpoint"]
    rewards: Annotated[str | None, "RewardEdit JSON for a data set of InstructPix2Pix folders"] = None
    columns: Annotated[
        str | None, "columns of --data as source=NAME,edited=NAME,instruction=NAME, where it is no known data set"
    ] = None
    least_score: Annotated[
        int | None,
        "train only on triplets whose three scores are all at least this, 0 to 5; needs --cache",
        Between(0, 5),
    ] = None
    variant: Annotated[str | None, LAYOUT["variant"]] = None
    vae: Annotated[str | None, LAYOUT["vae"]] = None
    base: Annotated[str | None, LAYOUT["base"]] = None
    photographs: Annotated[str | None, "folder of photographs as backgrounds of the miniature world"] = None
    stage: Annotated[
        int | str,
        "1 trains an editor without rewards, 2 one with rewards, distill a student of few steps and one branch",
    ] = 2
    guidance_max: Annotated[
        float, "distill: the student learns text guidance from 1 to this; at 1 the teacher has none", Between(1, 1000)
    ] = 10.0
    image_guidance_max: Annotated[
        float, "distill: the same for image guidance; 1 saves a teacher's branch", Between(1, 1000)
    ] = 2.5
    reward_weighting: Annotated[
        float,
        "distill: weight samples by the mean of their scores over 5, to this power; 0 gives all the same weight",
        Between(0),
    ] = 0.0
    reward_injection: Annotated[
        str,
        "where stage 2 adds reward layers: time (as released) or blocks (after every block too); those of a "
        "checkpoint stay",
    ] = "time"
    reward_only: Annotated[
        str,
        "for ablations, the one part of rewards that stage 2 trains with: scores or text, or their way into the "
        "latents or into the timestep embedding; all for everything",
    ] = "all"
    resolution: Annotated[int, "pixels of a side of the square crops, a multiple of 8", Between(8, 16_384)] = 256
    augment: Annotated[bool, "random crops and flips"] = True
    batch_size: Annotated[int, "triplets of an optimizer step, over all processes and passes", Between(1)] = 32
    accumulation: Annotated[int, "forward passes of an optimizer step; more passes need less memory", Between(1)] = 1
    steps: Annotated[int, "optimizer steps", Between(1)] = 1000
    learning_rate: Annotated[float, "highest learning rate of AdamW", Between(0)] = 5e-5
    lr_schedule: Annotated[str, "learning rate after the warm-up: constant or cosine (down to a hundredth)"] = (
        "constant"
    )
    warmup: Annotated[int, "steps in which the learning rate rises linearly", Between(0)] = 0
    beta1: Annotated[float, "AdamW's decay of the gradient's mean", Between(0, 0.999999)] = 0.9
    beta2: Annotated[float, "AdamW's decay of the squared gradient's mean", Between(0, 0.999999)] = 0.999
    weight_decay: Annotated[float, "AdamW's weight decay", Between(0)] = 0.01
    max_grad_norm: Annotated[float, "clip the gradient to this norm", Between(0)] = 1.0
    ema_decay: Annotated[float, "decay of the averaged weights, which are the result", Between(0, 1)] = 0.9999
    conditioning_dropout: Annotated[
        float,
        "probability to hide the text, again to hide text and image, and again to hide the image, at most 1/3",
        Between(0, 1 / 3),
    ] = 0.05  # InstructPix2Pix §3.2.1
    reward_dropout: Annotated[float, "probability to hide the reward: scores 2.5, no text", Between(0, 1)] = 0.0
    min_snr_gamma: Annotated[
        float | None,
        "weight timesteps by min(SNR, gamma)/SNR (arXiv 2303.09556); none gives all the same weight",
        Between(1e-6),
    ] = None
    change_weight: Annotated[
        float,
        "factor of the mean loss over the edited positions, added to the mean over all: for small edits",
        Between(0),
    ] = 0.0  # an object of the miniature world fills a fourteenth of a picture: without this it is learned last
    timestep_power: Annotated[
        float,
        "draw timestep t with a probability proportional to t to the (power - 1): above 1 noisy ones more often",
        Between(1e-3),
    ] = 1.0  # an edit is decided in the noisy steps
    mixed_precision: Annotated[str, "number format of the arithmetic: no (float32), bf16, or fp16 (on GPUs)"] = "no"
    gradient_checkpointing: Annotated[bool, "recompute activations in the backward pass, for less memory"] = False
    shard: Annotated[bool, "share weights, gradients and moments out over the processes (FSDP)"] = False
    train_text_encoder: Annotated[bool, "train the text encoder too, at a tenth of the learning rate"] = False
    train_qformer: Annotated[bool, "SmartEdit: train the Q-Former too"] = False
    train_bim: Annotated[bool, "SmartEdit: train the bidirectional interaction module too"] = False
    lora_rank: Annotated[
        int | None,
        "train only the reward modules and low-rank updates of the attention (stage distill: no reward modules, and "
        "convolutions, feed-forward and timestep layers too), merged at the end and saved as a LoRA file too",
        Between(1),
    ] = None
    cache: Annotated[str | None, "folder for latents and text states, computed once; needs --no-augment"] = None
    workers: Annotated[int, "processes that load data; 0 loads in the training process", Between(0)] = 1
    seed: Annotated[int, "of all random numbers, and of the miniature world", Between(0)] = 0
    data_seed: Annotated[int | None, "of the miniature world, where it is another than --seed", Between(0)] = None
    checkpoint_every: Annotated[int, "steps between two saved states", Between(1)] = 500
    checkpoints_total_limit: Annotated[int, "number of saved states that stay on the disk", Between(1)] = 3
    validate_every: Annotated[int, "steps between two pictures of edits; 0 for none", Between(0)] = 500
    broken_limit: Annotated[
        int | None, "stop when more different samples than this cannot be read; none stops when all are", Between(0)
    ] = None
    tracker: Annotated[str, "accelerate's experiment tracker; an empty text for none"] = "tensorboard"

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                raise MRCError(f"{name} is {value!r}; choose one of {', '.join(map(str, allowed))}")
        hints = get_type_hints(TrainConfig, include_extras=True)
        for name, value in self.record().items():
            fit(hints[name], value, name)
        if self.least_score is not None and not self.cache:
            raise MRCError(f"least_score is {self.least_score}; give --cache too, which has all scores")
        if self.resolution % 8:
            raise MRCError(f"resolution is {self.resolution}; give a multiple of 8 pixels")
        check_used(self)
        if self.cache and self.augment:
            raise MRCError("cached latents are of centre crops without flips; give --no-augment with --cache")

    @property
    def world_seed(self) -> int:
        """Of the miniature world."""
        return self.seed if self.data_seed is None else self.data_seed

    def record(self) -> dict:
        """As JSON takes it."""
        return asdict(self)


STAGES: dict[str, tuple[int | str, ...]] = {  # of a setting that other stages have no use for
    **dict.fromkeys(("guidance_max", "image_guidance_max", "reward_weighting"), ("distill",)),
    **dict.fromkeys(("min_snr_gamma", "train_text_encoder", "train_qformer", "train_bim"), (1, 2)),
    **dict.fromkeys(("reward_injection", "reward_only"), (2,)),
    "reward_dropout": (2, "distill"),
}


def check_used(config: TrainConfig) -> None:
    """Refuse settings that would have no effect."""
    for name, stages in STAGES.items():
        if (value := getattr(config, name)) != getattr(TrainConfig, name) and config.stage not in stages:
            named = " and ".join(map(str, stages))
            raise MRCError(f"{name} is {value}, which is for stage {named}, not {config.stage}; leave it out")
    for name in ("photographs", "data_seed"):
        if (value := getattr(config, name)) is not None and not config.data.startswith("miniature:"):
            raise MRCError(f"{name} is {value}, which is for --data miniature:N, not {config.data}; leave it out")
    if config.shard and config.reward_only in ("latents", "timestep"):
        raise MRCError(f"reward_only is {config.reward_only!r}, which is not trained with --shard; leave one out")
    if config.stage == "distill" and config.guidance_max == 1 < config.image_guidance_max:
        raise MRCError(
            f"guidance_max is 1, which turns all guidance off, and image_guidance_max {config.image_guidance_max:g}; "
            "give 1 for both, or more for the first"
        )


# What each preset sets; the command line overrides it
PRESETS: dict[str, dict] = {
    # the release's command for stage 2 and the defaults of its script (docs/training.md: Training as released);
    # its batch is 4 a device × 4 passes × devices, taken as 8 here
    "released": {
        "resolution": 256,
        "batch_size": 128,
        "accumulation": 4,
        "steps": 10_000,
        "learning_rate": 5e-5,
        "conditioning_dropout": 0.05,
        "mixed_precision": "fp16",
        "gradient_checkpointing": True,
        "checkpoint_every": 500,
    },
    # rate of arXiv 2310.04378, average and weight decay of diffusers' script for it, a batch for one GPU
    "distill": {
        "stage": "distill",
        "batch_size": 16,
        "steps": 10_000,
        "learning_rate": 8e-6,
        "warmup": 500,
        "weight_decay": 0.0,
        "ema_decay": 0.95,
        "conditioning_dropout": 0.0,
        "reward_dropout": 0.1,
        "gradient_checkpointing": True,
    },
    "mini": {
        "data": "miniature:48000",
        "resolution": 128,
        "augment": False,
        "batch_size": 32,
        "steps": 3000,
        "learning_rate": 5e-4,
        "lr_schedule": "cosine",
        "warmup": 100,
        "ema_decay": 0.998,
        "mixed_precision": "bf16",
        "conditioning_dropout": 0.04,
        "change_weight": 2.0,
        "timestep_power": 3.0,
        "validate_every": 1000,
    },
}


def preset(name: str) -> dict:
    """The settings of a preset, by field name."""
    if name not in PRESETS:
        raise MRCError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
