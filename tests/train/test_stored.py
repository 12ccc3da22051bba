"""Damaged states and caches: one clear error, and never a run that goes on from them."""

import copy
import json

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers.training_utils import EMAModel

from mrc_edit.core.errors import MRCError
from mrc_edit.train.cache import CachedBatches, cached_texts
from mrc_edit.train.state import TrainState, load_state
from mrc_edit.train.texts import TextStates

CONFIG = {"steps": 4, "stage": 2, "seed": 0}
GONE = "gone"


def new_state():
    torch.manual_seed(0)
    trained = [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(4))]
    return TrainState(trained, EMAModel(trained), torch.optim.AdamW(trained))


@pytest.fixture(scope="module")
def saved():
    """Record and tensors of a state of step 2."""
    state = new_state()
    for step in range(2):
        sum((parameter**2).sum() for parameter in state.trained).backward()
        state.optimizer.step()
        state.finish_step(1.5 - step, 0.1)
    tensors = {name: tensor.detach().clone() for name, tensor in state.tensors().items()}
    return {"config": CONFIG, "curve": state.curve, "broken": [], "step": 2}, tensors


def resume(out, record, tensors):
    """Write the state and take it up again."""
    folder = out / "states" / "00000002"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.json").write_text(record if isinstance(record, str) else json.dumps(record))
    if isinstance(tensors, bytes):
        (folder / "state.safetensors").write_bytes(tensors)
    elif tensors is not None:
        safetensors.torch.save_file(tensors, folder / "state.safetensors")
    state = new_state()
    state.restore(*load_state(out, "latest", CONFIG))
    return state


def test_a_whole_state_is_taken_up(saved, tmp_path):
    state = resume(tmp_path, *saved)
    assert state.step == 2 and all(torch.equal(state.tensors()[name], value) for name, value in saved[1].items())


def record_with(record, name, value):
    changed = copy.deepcopy(record)
    changed.pop(name) if value is GONE else changed.update({name: value})
    return changed


@pytest.mark.parametrize(
    ("name", "value"),
    [*[(name, value) for name in ("config", "curve", "broken", "step") for value in (GONE, None, 5, "x", [[]], {})],
     ("step", True), ("step", 3), ("step", -1), ("broken", [5]), ("resized", -1), ("resized", "x"),
     ("curve", []), ("curve", [[0, 1.0, 0.1]] * 2),
     ("curve", [[0, 1.0, 0.1], [1, float("nan"), 0.1]]), ("curve", [[0, 1.0], [1, 1.0]]),
     ("curve", [[0, "1", 0.1], [1, 1.0, 0.1]]), ("config", CONFIG | {"other": 1}), ("config", CONFIG | {"seed": 1})],
    ids=str,
)  # fmt: skip
def test_records_of_another_form(saved, tmp_path, name, value):
    if name == "config" and value == {}:
        pytest.skip("settings of an earlier version may be missing")
    record, tensors = saved
    with pytest.raises(MRCError, match="00000002"):
        resume(tmp_path, record_with(record, name, value), tensors)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"step":' * 50_000])
def test_records_that_are_no_json_object(saved, tmp_path, text):
    with pytest.raises(MRCError, match=r"state\.json"):
        resume(tmp_path, text, saved[1])


def test_a_state_beyond_the_steps_of_the_run(saved, tmp_path):
    with pytest.raises(MRCError, match="--steps 1"):
        resume(tmp_path, *saved)
        load_state(tmp_path, "latest", CONFIG | {"steps": 1})


def damaged_bytes(saved):
    whole = safetensors.torch.save(saved[1])
    header = int.from_bytes(whole[:8], "little")
    return [b"", b"x", whole[:50], whole[:-5], b"\xff" * 8 + whole[8:], whole[:8] + b"[" * header + whole[8 + header :],
            whole.replace(b'"F32"', b'"F33"', 1), whole.replace(b'"F32"', b'"I32"', 1)]  # fmt: skip


@pytest.mark.parametrize("number", range(8))
def test_files_that_are_damaged(saved, tmp_path, number):
    with pytest.raises(MRCError, match="00000002"):
        resume(tmp_path, saved[0], damaged_bytes(saved)[number])


def test_a_file_that_is_missing(saved, tmp_path):
    with pytest.raises(MRCError, match="00000002"):
        resume(tmp_path, saved[0], None)


@pytest.mark.parametrize("name", ["weights.0", "average.1", "optimizer.0.exp_avg", "optimizer.1.exp_avg_sq"])
@pytest.mark.parametrize(
    "value",
    [GONE, torch.ones(1), torch.ones(2, 3), torch.ones(()), torch.full((3, 2), float("nan")),
     torch.full((4,), float("inf")), torch.ones(3, 2, dtype=torch.float16), torch.ones(4, dtype=torch.int64)],
    ids=str,
)  # fmt: skip
def test_tensors_that_are_others(saved, tmp_path, name, value):
    """Also those that torch would silently stretch to the parameter's shape: the run would end well, with a checkpoint
    that nothing loads."""
    record, tensors = saved
    changed = {key: tensor for key, tensor in tensors.items() if key != name}
    with pytest.raises(MRCError, match=f"00000002.*{name}"):
        resume(tmp_path, record, changed if value is GONE else changed | {name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("weights.2", torch.ones(4)), ("other", torch.ones(4)), ("optimizer.2.exp_avg", torch.ones(4)),
     ("optimizer.x", torch.ones(4)), ("optimizer.0.step", torch.tensor(9.0)), ("optimizer.0.step", torch.ones(2)),
     ("optimizer.0.step", torch.tensor(float("nan"))), ("optimizer.0.exp_avg_sq", -torch.ones(3, 2))],
    ids=str,
)  # fmt: skip
def test_tensors_too_many_or_impossible(saved, tmp_path, name, value):
    with pytest.raises(MRCError, match="00000002 is damaged"):
        resume(tmp_path, saved[0], saved[1] | {name: value})


COUNT = 4


@pytest.fixture
def cache(tmp_path):
    generator = np.random.default_rng(0)
    np.save(tmp_path / "source.npy", generator.random((COUNT, 4, 2, 3)).astype(np.float16))
    np.save(tmp_path / "edited.npy", generator.random((COUNT, 2, 4, 2, 3)).astype(np.float16))
    np.save(tmp_path / "scores.npy", np.ones((COUNT, 3), np.float32))
    texts = {name: [f"{name}{i}" for i in range(COUNT)] for name in ("id", "instruction", "reward_text")}
    (tmp_path / "texts.json").write_text(json.dumps(texts | {"broken": []}))
    return tmp_path


def first_batch(cache):
    cached_texts(cache)
    return CachedBatches(cache, COUNT, seed=0, rank=0, world_size=1)[0]


def test_a_whole_cache(cache):
    assert first_batch(cache)["source"].shape == (COUNT, 4, 2, 3)


ARRAYS = {
    "source.npy": [np.ones((COUNT, 4, 2, 3)), np.ones((COUNT, 3, 2, 3), np.float16), np.float16(1),
                   np.full((COUNT, 4, 2, 3), np.nan, np.float16), np.ones((COUNT - 1, 4, 2, 3), np.float16),
                   np.empty((0, 4, 2, 3), np.float16)],
    "edited.npy": [np.ones((COUNT, 4, 2, 3), np.float16), np.ones((COUNT, 2, 4, 3, 2), np.float16),
                   np.full((COUNT, 2, 4, 2, 3), np.inf, np.float16), np.ones((COUNT, 2, 4, 2, 3), np.int16)],
    "scores.npy": [np.ones((COUNT, 2), np.float32), np.full((COUNT, 3), 6, np.float32), np.ones((COUNT, 3)),
                   np.full((COUNT, 3), np.nan, np.float32)],
}  # fmt: skip


@pytest.mark.parametrize(("name", "number"), [(name, i) for name, arrays in ARRAYS.items() for i in range(len(arrays))])
def test_arrays_of_another_form(cache, name, number):
    np.save(cache / name, ARRAYS[name][number])
    with pytest.raises(MRCError, match=r"\.npy|texts\.json|no triplet"):
        first_batch(cache)


@pytest.mark.parametrize("name", ["source.npy", "edited.npy", "scores.npy"])
@pytest.mark.parametrize("damage", ["empty", "cut", "header", "pickle", "zip", "folder"])
def test_arrays_that_are_damaged(cache, name, damage):
    path = cache / name
    data = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "pickle":
        with path.open("wb") as file:
            np.save(file, np.array([{}], dtype=object))
    elif damage == "zip":
        with path.open("wb") as file:
            np.savez(file, data=np.ones(3))
    else:
        path.write_bytes({"empty": b"", "cut": data[:-7], "header": data[:10] + b"(" * 60 + data[70:]}[damage])
    with pytest.raises(MRCError, match=name):
        first_batch(cache)


@pytest.mark.parametrize("name", ["source.npy", "edited.npy", "texts.json"])
def test_files_of_a_cache_that_are_missing(cache, name):
    (cache / name).unlink()
    with pytest.raises(MRCError, match=f"{name} is missing"):
        first_batch(cache)


@pytest.mark.parametrize("name", ["id", "instruction", "reward_text", "broken"])
@pytest.mark.parametrize("value", [GONE, None, 5, {}, ["x", 5], ["x"] * 3 + [None]], ids=str)
def test_texts_of_another_form(cache, name, value):
    texts = record_with(json.loads((cache / "texts.json").read_text()), name, value)
    (cache / "texts.json").write_text(json.dumps(texts))
    with pytest.raises(MRCError, match=r"texts\.json"):
        first_batch(cache)


@pytest.mark.parametrize("value", [None, 5, {}, ["x", 5], ["x"]], ids=str)
def test_names_of_resized_pairs_of_another_form(cache, value):
    texts = json.loads((cache / "texts.json").read_text())
    assert "resized" not in texts and first_batch(cache)["resized"] == []  # a cache of an earlier version
    (cache / "texts.json").write_text(json.dumps(texts | {"resized": value}))
    with pytest.raises(MRCError, match=r"texts\.json"):
        first_batch(cache)


@pytest.fixture
def states(tmp_path):
    np.save(tmp_path / "states.npy", np.ones((2, 3, 4), np.float16))
    np.save(tmp_path / "pooled.npy", np.ones((2, 4), np.float16))
    (tmp_path / "texts.json").write_text('["", "snow"]')
    return tmp_path


def test_text_states(states):
    assert TextStates(states).states(["snow", ""]).shape == (2, 3, 4)
    with pytest.raises(MRCError, match="no states of 'rain'"):
        TextStates(states).pooled(["rain"])


@pytest.mark.parametrize(
    ("name", "content"),
    [("texts.json", text) for text in ("", "{", "{}", '["", 5]', '[""]', "[" * 100_000)]
    + [("states.npy", array) for array in (np.ones((2, 3)), np.ones((3, 3, 4), np.float16), np.ones((2, 3, 4)))]
    + [("pooled.npy", array) for array in (np.ones((2, 5), np.float16), np.full((2, 4), np.nan, np.float16))],
    ids=lambda value: str(value)[:12],
)
def test_text_states_of_another_form(states, name, content):
    (states / name).unlink()
    np.save(states / name, content) if name.endswith(".npy") else (states / name).write_text(content)
    with pytest.raises(MRCError, match=r"(\.npy|texts\.json).*remove"):
        TextStates(states).pooled(["snow"])
