import json
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from mrc_edit.core.errors import MRCError
from mrc_edit.core.fidelity import psnr
from mrc_edit.train import autoencoder
from mrc_edit.train.miniature.photographs import load_photographs
from mrc_edit.train.state import list_states

RUN = """
import sys
from pathlib import Path
from mrc_edit.train import autoencoder
autoencoder.BATCH, autoencoder.HELD_OUT, autoencoder.SAVE_EVERY = 1, 1, 1
autoencoder.train(Path(sys.argv[1]), None, 4, seed=3)
"""


@pytest.fixture
def brief(monkeypatch):
    for name in ("BATCH", "HELD_OUT", "SAVE_EVERY"):
        monkeypatch.setattr(autoencoder, name, 1)


@torch.no_grad()
def test_training_starts_at_averages():
    """Latents are the colours averaged over their pixels, and decoding repeats them."""
    torch.manual_seed(0)
    vae = AutoencoderKL(**autoencoder.CONFIG)
    autoencoder.start_at_averages(vae)
    pictures = autoencoder.Pictures(load_photographs(), 0)
    batch = torch.stack([pictures[i] for i in range(4)])
    averages = F.avg_pool2d(batch, 4)
    latents = vae.encode(batch).latent_dist
    assert psnr(latents.mode()[:, :3].numpy(), averages.numpy(), peak=2) > 35
    assert latents.std.max() < 0.1
    decoded = vae.decode(latents.mode()).sample
    assert psnr(decoded.numpy(), averages.repeat_interleave(4, 2).repeat_interleave(4, 3).numpy(), peak=2) > 35


def test_killed_it_goes_on_bit_for_bit(brief, tmp_path, same_state):
    killed = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", RUN, killed], stderr=subprocess.DEVNULL)
    while process.poll() is None and not list_states(killed):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it had ended before the kill"
    assert not (killed / "vae").exists()
    for out in (killed, tmp_path / "whole"):
        assert autoencoder.train(out, None, 4, seed=3) == out / "vae"
    assert same_state(*(list_states(tmp_path / name)[-1] for name in ("killed", "whole")))
    record = json.loads((killed / "training.json").read_text())
    assert record["config"]["steps"] == 4 and record["psnr_db"] > 20 and record["versions"]


def test_a_finished_or_another_run_is_refused(brief, tmp_path):
    autoencoder.train(tmp_path, None, 1, seed=3)
    with pytest.raises(MRCError, match="there already"):
        autoencoder.train(tmp_path, None, 1, seed=3)
    (tmp_path / "vae").rename(tmp_path.with_name(f"{tmp_path.name}-vae"))
    with pytest.raises(MRCError, match="seed 3 → 4"):
        autoencoder.train(tmp_path, None, 1, seed=4)
