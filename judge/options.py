"""The command-line options of a judge that is asked over the network, the same for all commands."""

import argparse
import importlib.util
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..core.errors import MRCError
from .reward import Judge
from .spending import Spending


@dataclass(frozen=True)
class JudgeOptions:
    """Where the judge is, and how much may be asked of it. The key is in the environment alone."""

    judge_model: str | None = None
    base_url: str | None = None
    concurrency: int = 8
    timeout: float = 120.0
    max_requests: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.timeout <= 0:
            raise MRCError(f"concurrency is {self.concurrency} (from 1 up), timeout {self.timeout} (above 0)")

    def spending(self) -> Spending:
        return Spending(self.max_requests, self.max_tokens)


def add_arguments(parser: argparse.ArgumentParser, model_flag: str = "--judge-model") -> None:
    default = JudgeOptions()
    group = parser.add_argument_group("judge", "the key is read from OPENAI_API_KEY; local servers need none")
    group.add_argument(model_flag, dest="judge_model", metavar="MODEL", help="vision-language model that judges")
    group.add_argument("--base-url", help="OpenAI-compatible server, such as http://localhost:8000/v1")
    group.add_argument("--concurrency", type=int, default=default.concurrency, help="requests at a time")
    group.add_argument("--timeout", type=float, default=default.timeout, help="seconds for a reply")
    group.add_argument("--max-requests", type=int, help="stop this run before it sends more")
    group.add_argument("--max-tokens", type=int, help="stop this run when it has used as many")


def given_options(args: argparse.Namespace) -> JudgeOptions:
    values: dict[str, Any] = {field.name: getattr(args, field.name) for field in fields(JudgeOptions)}
    return JudgeOptions(**values)


def open_judge(options: JudgeOptions, replies: Path, spending: Spending) -> Judge:
    """The vision-language model of the options; its replies are kept in the folder `replies`.

    Raises:
        MRCError: no model named, the `openai` package missing, or what `Endpoint` refuses.
    """
    if not options.judge_model:
        raise MRCError("name the vision-language model that judges")
    if importlib.util.find_spec("openai") is None:
        raise MRCError("judging by a model needs the openai package: pip install 'mrc-edit[judge]'")
    from .endpoint import Endpoint
    from .vision import VisionJudge

    endpoint = Endpoint(options.judge_model, options.base_url, spending, options.timeout)
    return VisionJudge(endpoint, replies)
