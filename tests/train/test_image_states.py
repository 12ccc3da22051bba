import numpy as np
import pytest
import torch
from PIL import Image

from mrc_edit.core.errors import MRCError
from mrc_edit.train import image_states
from mrc_edit.train.data import Triplet
from mrc_edit.train.image_states import ImageStates, build_image_states

COUNT, BROKEN = 11, 4


class Data:
    """Eleven triplets; the pixels of number i are i; one is broken."""

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        if index == BROKEN:
            raise MRCError("broken")
        picture = Image.new("RGB", (12, 8), (index,) * 3)
        return Triplet(f"id{index}", picture, picture, f"text {index}")


IDS = [f"id{i}" for i in range(COUNT) if i != BROKEN]


class Encoder:
    """States hold the instruction's number, features the picture's; stops at its `limit`th call."""

    def __init__(self, limit=1000):
        self.calls, self.limit = 0, limit

    def __call__(self, picture, instruction):
        self.calls += 1
        if self.calls > self.limit:
            raise KeyboardInterrupt
        number, value = float(instruction.split()[1]), float(np.asarray(picture).mean())
        return torch.full((3, 2), number), torch.full((4, 5), value)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(image_states, "PART", 4)


def test_rows_are_the_caches(tmp_path):
    build_image_states(Encoder(), Data(), IDS, tmp_path / "states", 8)
    rows = np.array([9, 0, 3, 4, 4])
    states, features = ImageStates(tmp_path / "states", len(IDS))(rows)
    assert states.shape == (5, 3, 2) and features.shape == (5, 4, 5)
    wanted = torch.tensor([float(IDS[row][2:]) for row in rows])
    assert torch.equal(states[:, 0, 0], wanted) and torch.equal(features[:, 0, 0], wanted)


def test_a_stopped_run_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        build_image_states(Encoder(limit=6), Data(), IDS, tmp_path / "half", 8)  # within the second part
    assert len(list((tmp_path / "half").iterdir())) == 1
    with pytest.raises(MRCError, match=r"00000004\.safetensors cannot be read"):
        ImageStates(tmp_path / "half", len(IDS))
    rest = Encoder()
    build_image_states(rest, Data(), IDS, tmp_path / "half", 8)
    assert rest.calls == 6  # of 10
    build_image_states(Encoder(), Data(), IDS, tmp_path / "whole", 8)
    for one, other in zip(*(sorted((tmp_path / name).iterdir()) for name in ("half", "whole")), strict=True):
        assert one.name == other.name and one.read_bytes() == other.read_bytes()


def test_other_data_is_refused(tmp_path):
    with pytest.raises(MRCError, match="the data has id0 where the cache has other"):
        build_image_states(Encoder(), Data(), ["other", *IDS], tmp_path / "states", 8)
    with pytest.raises(MRCError, match="the data has the end where the cache has more"):
        build_image_states(Encoder(), Data(), [*IDS, "more"], tmp_path / "states", 8)


def test_damaged_parts_are_refused(tmp_path):
    folder = tmp_path / "states"
    build_image_states(Encoder(), Data(), IDS, folder, 8)
    with pytest.raises(MRCError, match=r"00000008\.safetensors is damaged"):
        ImageStates(folder, len(IDS) + 1)
    path = folder / "00000000.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(MRCError, match=r"00000000\.safetensors cannot be read"):
        ImageStates(folder, len(IDS))


def test_values_are_finite(tmp_path):
    def overflows(picture, instruction):
        return tuple(tensor + 1e6 for tensor in Encoder()(picture, instruction))

    build_image_states(overflows, Data(), IDS, tmp_path / "states", 8)
    with pytest.raises(MRCError, match="not finite"):
        ImageStates(tmp_path / "states", len(IDS))(np.array([0]))
