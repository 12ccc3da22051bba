"""Everything a training run is told, once."""

from dataclasses import asdict, dataclass

from ..core.errors import MRCError


@dataclass(frozen=True)
class TrainConfig:
    """One run of `mrc-train`. Defaults are InstructPix2Pix's where a preset says nothing else.

    Attributes:
        init: checkpoint folder to start from.
        data: what `open_triplets` reads, or `miniature:N` for N triplets of the miniature world.
        rewards: RewardEdit JSON over InstructPix2Pix folders.
        least_score: train only on triplets whose three scores are all at least this; needs `cache`, which has
            every score beforehand.
        out: the run's folder; the trained checkpoint is `out/checkpoint`.
        stage: 1 trains an editor without rewards, 2 one with them.
        batch_size: triplets an optimizer step, over all processes and accumulated passes.
        accumulation: forward passes an optimizer step.
        conditioning_dropout: width of each of three bands of one random number: no text, no text and
            no image, no image (InstructPix2Pix §3.2.1).
        reward_dropout: probability that a triplet's reward is hidden (scores 2.5, no text).
        min_snr_gamma: weight timesteps by min(SNR, gamma)/SNR (arXiv 2303.09556); None for equal weights.
        shard: share parameters, gradients and moments out over the processes (FSDP) instead of copying them (DDP).
        change_weight: how often the mean loss over the changed positions is added to the mean over all. An
            object of the miniature world is a fourteenth of a picture and of its loss;
            without this its edits are learned last.
        timestep_power: timestep t is drawn with a probability proportional to t to the (power - 1); above 1
            the noisy steps, where an edit is decided, come more often.
        lora_rank: train low-rank updates of the attention matrices alone; they are merged at the end.
        validate_every: steps between pictures of edits with the averaged weights; 0 for none.
        broken_limit: distinct broken samples that are skipped before the run stops.
    """

    init: str
    data: str
    out: str
    rewards: str | None = None
    least_score: int | None = None
    photographs: str | None = None
    stage: int = 2
    reward_injection: str = "time"
    resolution: int = 256
    augment: bool = True
    batch_size: int = 32
    accumulation: int = 1
    steps: int = 1000
    learning_rate: float = 5e-5
    lr_schedule: str = "constant"
    warmup: int = 0
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_decay: float = 0.9999
    conditioning_dropout: float = 0.05
    reward_dropout: float = 0.0
    min_snr_gamma: float | None = None
    change_weight: float = 0.0
    timestep_power: float = 1.0
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    shard: bool = False
    train_text_encoder: bool = False
    lora_rank: int | None = None
    cache: str | None = None
    workers: int = 1
    seed: int = 0
    checkpoint_every: int = 500
    checkpoints_total_limit: int = 3
    validate_every: int = 500
    broken_limit: int = 100
    tracker: str = "tensorboard"

    def __post_init__(self) -> None:
        choices = {
            "stage": (1, 2),
            "reward_injection": ("time", "blocks"),
            "lr_schedule": ("constant", "cosine"),
            "mixed_precision": ("no", "bf16", "fp16"),
        }
        for name, allowed in choices.items():
            if (value := getattr(self, name)) not in allowed:
                raise MRCError(f"{name} is {value!r}; choose one of {', '.join(map(str, allowed))}")
        positive = ("batch_size", "accumulation", "steps", "checkpoint_every", "checkpoints_total_limit", "lora_rank")
        for name in (*positive, "seed", "workers", "warmup", "validate_every", "broken_limit"):
            least = 1 if name in positive else 0
            if (value := getattr(self, name)) is not None and value < least:
                raise MRCError(f"{name} is {value}; give a whole number from {least} up")
        if not 0 <= 3 * self.conditioning_dropout <= 1 or not 0 <= self.reward_dropout <= 1:
            raise MRCError(
                f"conditioning_dropout is {self.conditioning_dropout} (three bands must fit in 1), "
                f"reward_dropout {self.reward_dropout} (0 to 1)"
            )
        if self.timestep_power <= 0 or self.change_weight < 0:
            raise MRCError(
                f"timestep_power is {self.timestep_power} (above 0), change_weight {self.change_weight} (from 0 up)"
            )
        if self.least_score is not None and (not 0 <= self.least_score <= 5 or not self.cache):
            raise MRCError(f"least_score is {self.least_score}; give 0 to 5, and --cache, which has all scores")
        if self.resolution < 8 or self.resolution % 8:
            raise MRCError(f"resolution is {self.resolution}; give a multiple of 8 pixels")
        if self.cache and self.augment:
            raise MRCError("cached latents are of centre crops without flips; give --no-augment with --cache")

    def record(self) -> dict:
        """As JSON takes it."""
        return asdict(self)


# What each preset sets; the command line overrides it
PRESETS: dict[str, dict] = {
    # the release's command; its batch is 4 a device × 4 passes × devices, taken as 8 here
    "released": {
        "resolution": 256,
        "batch_size": 128,
        "accumulation": 4,
        "steps": 10_000,
        "learning_rate": 5e-5,
        "conditioning_dropout": 0.05,
        "checkpoint_every": 500,
    },
    "mini": {
        "data": "miniature:32000",
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
