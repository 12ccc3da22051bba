"""What the engine asks of a checkpoint before it edits with it or exports it."""

import dataclasses

import pytest

from mrc_edit.core.errors import MRCError
from mrc_edit.engine.backends.eager import geometry
from mrc_edit.model import MRCUNet
from mrc_edit.model.extend import keywords
from mrc_edit.model.seeded import seeded_checkpoint


def with_unet(**changes):
    checkpoint = seeded_checkpoint(rewards=False)
    return dataclasses.replace(checkpoint, unet=MRCUNet(rewards=False, **keywords(checkpoint.unet) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 4}, "4 input and 4 output channels, an InstructPix2Pix one 8 and 4"),  # text-to-image
        ({"in_channels": 9}, "9 input and 4 output channels"),  # inpainting
        ({"out_channels": 8}, "8 input and 8 output channels"),  # learned variance
        ({"cross_attention_dim": 128}, "text states of width 128 and the text encoder gives 64"),
        ({"sample_size": None}, "sample_size None"),
        ({"sample_size": "large"}, "sample_size 'large'"),
        ({"sample_size": 0}, "sample_size 0"),
    ],
)
def test_other_models_are_refused_by_what_they_are(changes, message):
    with pytest.raises(MRCError, match=message):
        geometry(with_unet(**changes))


def test_a_sample_size_may_be_height_and_width():
    assert geometry(with_unet(sample_size=[16, 32])).resolution == 256
