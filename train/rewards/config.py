"""All settings of `mrc-rewards build`."""

import json
from dataclasses import asdict, dataclass

from ...core.errors import MRCError
from ...judge.options import JudgeOptions

JUDGES = ("openai", "oracle")


@dataclass(frozen=True)
class BuildConfig:
    """`data`, `columns`, `photographs` and `seed` as for `mrc-train`.

    Attributes:
        judge: "openai", a model behind an OpenAI-compatible server, or "oracle", for data miniature:N.
        ray_workers: processes of a Ray job; None judges in this process.
        as_json: print the report as JSON.

    Raises:
        MRCError: settings that exclude each other.
    """

    data: str
    out: str
    options: JudgeOptions
    judge: str = "openai"
    columns: str | None = None
    photographs: str | None = None
    seed: int = 0
    ray_workers: int | None = None
    as_json: bool = False

    def __post_init__(self) -> None:
        if self.judge not in JUDGES:
            raise MRCError(f"--judge is {self.judge!r}; choose one of {', '.join(JUDGES)}")
        if self.judge == "oracle" and not self.data.startswith("miniature:"):
            raise MRCError(f"the oracle judges miniature:N alone, not {self.data}; give a --model")
        if self.judge == "openai" and not self.options.judge_model:
            raise MRCError("give --model, the vision-language model that judges, or --judge oracle")
        if self.photographs is not None and not self.data.startswith("miniature:"):
            raise MRCError(f"--photographs is {self.photographs}, which is for miniature:N; leave it out")
        if self.seed < 0:
            raise MRCError(f"--seed is {self.seed}; give a number from 0 up")
        if self.ray_workers is not None and self.ray_workers < 1:
            raise MRCError(f"--workers is {self.ray_workers}; give a number from 1 up")

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "BuildConfig":
        values = json.loads(text)
        return cls(**values | {"options": JudgeOptions(**values["options"])})
