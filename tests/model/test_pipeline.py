import diffusers
import numpy as np
import pytest
import torch

from mrc_edit.core.errors import MRCError
from mrc_edit.model import load_checkpoint
from mrc_edit.model.pipeline import edit_latents


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "DDIMScheduler"])
def test_a_batch_gives_what_its_items_give_alone(tiny, name, error):
    checkpoint = load_checkpoint(tiny, torch.float64)  # a batch changes rounding, and nothing else
    scheduler = getattr(diffusers, name).from_config(checkpoint.scheduler.config)
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64) * 2 - 1
    options = {"num_inference_steps": 3, "scheduler": scheduler}
    both = edit_latents(checkpoint, images, ["snow", "rain"], generators(1, 2), **options).numpy()
    for i, text in enumerate(("snow", "rain")):
        alone = edit_latents(checkpoint, images[i : i + 1], [text], generators(i + 1), **options).numpy()
        assert error(both[i], alone[0]) <= 1e-9
    assert np.isfinite(both).all()


def test_unequal_lists_are_refused(tiny):
    with pytest.raises(MRCError, match="2 instructions"):
        edit_latents(load_checkpoint(tiny), torch.zeros(1, 3, 64, 64), ["a", "b"], generators(1))
