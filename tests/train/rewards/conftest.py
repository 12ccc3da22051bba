import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrc_edit.judge.options import JudgeOptions
from mrc_edit.train.data import make_triplet
from mrc_edit.train.data.writers import write_triplets
from mrc_edit.train.rewards.config import BuildConfig

COMMAND = Path(sys.executable).parent / "mrc-rewards"


def triplet(number, size=(12, 8)):
    pixels = np.random.default_rng(number).integers(0, 256, (2, *size[::-1], 3), dtype=np.uint8)
    return make_triplet(str(number), *map(Image.fromarray, pixels), f"make it {number}")


@pytest.fixture(scope="session")
def command() -> list[str]:
    """The installed `mrc-rewards`, as subprocess takes it."""
    return [str(COMMAND)]


@pytest.fixture(scope="session")
def triplets_of(tmp_path_factory):
    """Folder of so many random triplets without rewards."""

    def make(count, form="parquet", **kwargs):
        folder = tmp_path_factory.mktemp("data") / form
        write_triplets((triplet(number, **kwargs) for number in range(count)), folder, form)
        return folder

    return make


@pytest.fixture
def config(judge_server, tmp_path, monkeypatch):
    """A build judged by the test server."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)

    def make(data, model="good", out="out", workers=None, **options) -> BuildConfig:
        given = {"concurrency": 4, "timeout": 10.0} | options
        judge = JudgeOptions(model, judge_server.url, **given)
        return BuildConfig(str(data), str(tmp_path / out), judge, ray_workers=workers)

    return make


@pytest.fixture
def environment():
    return {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
