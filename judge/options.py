"""The command-line options of a vision-language model as judge, the same for all commands."""

import argparse
import importlib.util
from dataclasses import dataclass, fields
from pathlib import Path

from ..core.errors import MRCError
from .reward import Judge
from .spending import Spending


@dataclass(frozen=True)
class JudgeOptions:
    """The judge's model and server, and the limits of a run. The key is in the environment alone.

    Attributes:
        concurrency: requests in flight at a time.
        timeout: seconds for a whole request.
    """

    judge_model: str | None = None
    base_url: str | None = None
    concurrency: int = 8
    timeout: float = 120.0
    max_requests: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.concurrency < 1 or not self.timeout > 0:
            raise MRCError(f"concurrency is {self.concurrency} (from 1 up), timeout {self.timeout} (above 0)")

    def spending(self) -> Spending:
        """A new count of requests and tokens with these limits."""
        return Spending(self.max_requests, self.max_tokens)


def add_arguments(parser: argparse.ArgumentParser, model_flag: str = "--judge-model") -> None:
    """Add a flag for each of `JudgeOptions`."""
    default = JudgeOptions()
    group = parser.add_argument_group("judge", "the key is read from OPENAI_API_KEY; local servers need none")
    group.add_argument(
        model_flag, dest="judge_model", metavar="MODEL", help="vision-language model that judges (default: none)"
    )
    group.add_argument(
        "--base-url", help="OpenAI-compatible server, such as http://localhost:8000/v1 (default: OpenAI's)"
    )
    group.add_argument(
        "--concurrency", type=int, default=default.concurrency, help="requests at a time (default: %(default)s)"
    )
    group.add_argument(
        "--timeout", type=float, default=default.timeout, help="seconds for a whole request (default: %(default)s)"
    )
    group.add_argument("--max-requests", type=int, help="requests of this run at most (default: no limit)")
    group.add_argument("--max-tokens", type=int, help="stop when this run has used so many tokens (default: no limit)")


def given_options(args: argparse.Namespace) -> JudgeOptions:
    """The options of a parsed command line."""
    return JudgeOptions(**{field.name: getattr(args, field.name) for field in fields(JudgeOptions)})


def open_judge(options: JudgeOptions, replies: Path, spending: Spending) -> Judge:
    """The vision-language model of the options; its replies are stored in the folder `replies`.

    Raises:
        MRCError: no model named, the `openai` package missing, or what `Endpoint` refuses.
    """
    if not options.judge_model:
        raise MRCError("no judge model is named; name the vision-language model that judges")
    if importlib.util.find_spec("openai") is None:
        raise MRCError("judging by a model needs the openai package: pip install 'mrc-edit[judge]'")
    from .endpoint import Endpoint
    from .vision import VisionJudge

    endpoint = Endpoint(options.judge_model, options.base_url, spending, options.timeout)
    return VisionJudge(endpoint, replies)
