import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mrc_edit.core.errors import MRCError
from mrc_edit.train.data import make_triplet
from mrc_edit.train.data.batches import StepBatches, fit_pair, step_indices
from mrc_edit.train.data.notes import check_broken


class Numbers:
    """Sample i is a picture of colour i; those in `broken` do not open."""

    def __init__(self, length=10, broken=()):
        self.length, self.broken = length, broken

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index in self.broken:
            raise MRCError(f"sample {index} is broken")
        image = Image.new("RGB", (20, 16), (index, 0, 0))
        return make_triplet(str(index), image, image, f"edit {index}", (1, 2, 3), "a; b; c")


@given(length=st.integers(1, 40), batch=st.integers(1, 17), seed=st.integers(0, 5))
def test_every_epoch_sees_every_sample_once(length, batch, seed):
    steps = -(-2 * length // batch)
    seen = [i for step in range(steps) for i in step_indices(step, batch, length, seed)]
    assert sorted(seen[:length]) == sorted(seen[length : 2 * length]) == list(range(length))


@given(width=st.integers(8, 60), height=st.integers(8, 60), flip=st.booleans(), x=st.floats(0, 1), y=st.floats(0, 1))
def test_both_images_are_cut_alike(width, height, flip, x, y):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    source, edited = fit_pair(image, image, 16, flip, (x, y))
    assert source.shape == (3, 16, 16) and source.min() >= -1 and source.max() <= 1
    assert np.array_equal(source, edited)


def test_flip_mirrors():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    plain, _ = fit_pair(image, image, 16, False, (0.5, 0.5))
    mirrored, _ = fit_pair(image, image, 16, True, (0.5, 0.5))
    assert np.array_equal(plain[:, :, ::-1], mirrored)


def same(a, b):
    return all(torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a)


def test_two_processes_see_together_what_one_sees():
    data = Numbers(broken=(4,))
    for step in (0, 3):
        whole = StepBatches(data, 4, 16, seed=1)[step]
        halves = [StepBatches(data, 4, 16, seed=1, rank=rank, world_size=2)[step] for rank in (0, 1)]
        assert whole["ids"] == halves[0]["ids"] + halves[1]["ids"]
        assert torch.equal(whole["source"], torch.cat([half["source"] for half in halves]))
        assert torch.equal(whole["positions"], torch.cat([half["positions"] for half in halves]))


def test_a_batch_depends_on_its_number_alone():
    forward = StepBatches(Numbers(), 3, 16, seed=2)
    expected = [forward[step] for step in range(5)]
    assert same(StepBatches(Numbers(), 3, 16, seed=2)[4], expected[4])
    assert not same(StepBatches(Numbers(), 3, 16, seed=3)[4], expected[4])


def test_one_readable_sample_is_enough():
    batch = StepBatches(Numbers(400, broken=set(range(400)) - {399}), 4, 16, seed=0)[0]
    assert batch["ids"] == ["399"] * 4 and len(batch["broken"]) > 4


@given(width=st.integers(4, 40), height=st.integers(4, 40), size=st.sampled_from([8, 16]))
def test_an_edited_image_of_another_size_is_squeezed_as_released(width, height, size):
    """The release resizes each picture of a pair to the same square, whatever its own sides are."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    _, edited = fit_pair(Image.new("RGB", (20, 20)), image, size, False, (0.5, 0.5))
    squeezed = np.asarray(image.resize((size, size), Image.Resampling.LANCZOS), dtype=np.float32)
    assert np.array_equal(edited, squeezed.transpose(2, 0, 1) / 127.5 - 1)


@given(width=st.integers(8, 60), height=st.integers(8, 60), flip=st.booleans(), x=st.floats(0, 1), y=st.floats(0, 1))
def test_pairs_of_two_sizes_are_cut_alike(width, height, flip, x, y):
    """A smooth picture at another size and other proportions gives nearly the same crop."""
    whole = Image.linear_gradient("L").convert("RGB")
    whole = Image.merge("RGB", (whole.getchannel(0), whole.getchannel(0).rotate(90), whole.getchannel(0)))
    source, edited = fit_pair(whole.resize((width, height)), whole.resize((91, 77)), 16, flip, (x, y))
    assert np.abs(source - edited).max() < 0.25


def test_pairs_of_two_sizes_are_named():
    pair = make_triplet("7", Image.new("RGB", (20, 16)), Image.new("RGB", (24, 16)), "edit")
    batch = StepBatches([pair], 2, 16, seed=0)[0]
    assert batch["resized"] == ["sample 7: source is 20×16, edited 24×16"] * 2
    assert StepBatches(Numbers(), 2, 16, seed=0)[0]["resized"] == []


def test_broken_samples_are_replaced_and_reported():
    batches = StepBatches(Numbers(6, broken=(2, 5)), 6, 16, seed=0)
    batch = batches[0]
    assert batch["broken"] and not {"2", "5"} & set(batch["ids"]) and len(batch["ids"]) == 6
    seen: set[str] = set()
    check_broken(seen, batch["broken"], limit=2)
    assert seen == {"sample 2 is broken", "sample 5 is broken"}
    with pytest.raises(MRCError, match="--broken-limit 1"):
        check_broken(seen, (), limit=1)
    with pytest.raises(MRCError, match="none of 3 samples"):
        StepBatches(Numbers(3, broken=range(3)), 1, 16, seed=0)[0]
