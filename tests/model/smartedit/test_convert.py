import json
import pickle
import shutil

import pytest
import safetensors.torch
import torch
from accelerate import init_empty_weights

from mrc_edit.convert import smartedit as convert
from mrc_edit.convert import smartedit_sizes as sizes
from mrc_edit.convert.command import main
from mrc_edit.core.errors import MRCError
from mrc_edit.core.fidelity import relative_error
from mrc_edit.model import MRCUNet
from mrc_edit.model.checkpoint import without_notes
from mrc_edit.model.smartedit.folder import load_smartedit, read_settings
from mrc_edit.model.smartedit.tokens import OWN

LLM = "LLM-15000/adapter_model.bin"
QUERIES = "embeddings_qformer/checkpoint-15000_embeddings_qformer.bin"
QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def copied(release, tmp_path):
    """The release, to be damaged."""
    return shutil.copytree(release, tmp_path / "release")


def converted(source, target, **options):
    return convert.convert_smartedit(source, target, qformer_heads=4, **options)


def change(path, edit):
    state = {key: value.clone() for key, value in torch.load(path, weights_only=True).items()}
    edit(state)
    torch.save(state, path)


def test_every_tensor_arrives_alone_and_lora_is_folded(release, smartedit):
    llm = torch.load(release / LLM, weights_only=True)
    assert llm["model.base_model.model.norm.weight"].untyped_storage().nbytes() > 64 * 4  # views of one buffer
    written = safetensors.torch.load_file(smartedit / "llm" / "model.safetensors")
    start = "model.base_model.model." + QUERY.removeprefix("model.").removesuffix(".weight")
    a, b = (llm[f"{start}.lora_{half}.default.weight"].double() for half in "AB")
    expected = llm[f"{start}.weight"].double() + 2 * b @ a
    assert relative_error(written[QUERY].numpy(), expected.numpy()) <= 1e-7
    assert relative_error(llm[f"{start}.weight"].numpy(), expected.numpy()) > 0.1
    queries = torch.load(release / QUERIES, weights_only=True)
    assert torch.equal(written["lm_head.weight"], queries["lm_head.weight"])
    assert not any("lora" in key or "inv_freq" in key for key in written)
    size = (smartedit / "llm" / "model.safetensors").stat().st_size
    assert size < 1.1 * sum(value.nbytes for value in written.values()) + 10_000


@pytest.mark.parametrize("size", ["7b", "13b"])
def test_all_tensors_of_the_released_sizes_fit(released_golden, tmp_path, monkeypatch, size):
    """By name and shape, without values."""
    lists = json.loads((released_golden / f"state_dict_{size}.json").read_text())
    names = {"LLM": "llm", "embeddings_qformer": "qformer", "modulate": "bim", "unet": "unet"}
    states = {
        names[file]: {key: torch.empty(shape, device="meta") for key, (shape, _) in entries.items()}
        for file, entries in lists["files"].items()
    }
    written = {}
    monkeypatch.setattr(convert, "write_tensors", lambda folder, sources: written.update({folder.name: sources}))
    paths = dict.fromkeys(states, tmp_path)
    llm = sizes.llm_config(states["llm"], convert.LLM_PREFIX)
    qformer, bim = sizes.qformer_sizes(states["qformer"], 12), sizes.bim_sizes(states["bim"])
    for part in ("llm", "qformer", "bim"):
        (tmp_path / part).mkdir()
    convert.write_llm(tmp_path / "llm", states["llm"], states["qformer"], llm, tmp_path)
    convert.write_readers(tmp_path, states, paths, qformer, bim)
    assert (llm.num_attention_heads, qformer.layers, bim.hidden) == ({"7b": 32, "13b": 40}[size], 6, 2048)
    assert sum(len(sources) for part, sources in written.items() if part != "llm") == 133 - 2 + 89
    unet = {key.removeprefix("unet."): value for key, value in states["unet"].items()}
    with init_empty_weights():
        expected = MRCUNet(rewards=False, **without_notes(sizes.unet_config(unet, tmp_path))).state_dict()
    convert.check_tensors(expected, {key: value.shape for key, value in unet.items()}, tmp_path)
    assert len(unet) == 686


def test_half_precision_is_folded_in_float32():
    """A little more than half of a last place: rounded first, it would be lost."""
    weight, a, b = torch.ones(4, 4).bfloat16(), torch.full((1, 4), 2**-5 * (1 + 2**-10)), torch.full((4, 1), 2**-4)
    folded = convert.given(weight, a, b)[2]()
    assert folded.dtype == torch.bfloat16
    assert torch.equal(folded, torch.full((4, 4), 1 + 2**-7).bfloat16())


def test_shards_load_as_one_file_does(release, smartedit, tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "SHARD", 100_000)
    converted(release, tmp_path / "out")
    files = sorted((tmp_path / "out" / "llm").glob("*.safetensors"))
    assert len(files) > 3
    assert max(file.stat().st_size for file in files) < 130_000
    sharded, whole = load_smartedit(tmp_path / "out"), load_smartedit(smartedit)
    assert sharded.llm.state_dict().keys() == whole.llm.state_dict().keys()
    assert all(torch.equal(value, whole.llm.state_dict()[key]) for key, value in sharded.llm.state_dict().items())


def test_the_wording_is_recorded(release, smartedit, tmp_path, capsys):
    assert read_settings(smartedit).wording.source == "given"
    with pytest.raises(SystemExit) as stop:
        main(["smartedit", str(release), str(tmp_path / "out")])
    assert stop.value.code == 2 and "heads" in capsys.readouterr().err  # 12, as released
    assert converted(release, tmp_path / "out") == OWN
    assert read_settings(tmp_path / "out").wording == OWN
    assert OWN.source == "own"
    strings = tmp_path / "strings.json"
    strings.write_text(json.dumps({"system": "s", "roles": ["A", "B"], "templates": []}))
    with pytest.raises(MRCError, match="lacks caption"):
        converted(release, tmp_path / "other", templates=strings)
    assert not (tmp_path / "other").exists()


def without(key):
    return lambda state: state.pop(key)


def renamed(key):
    return lambda state: state.update({f"{key}2": state.pop(key)})


def reshaped(key):
    return lambda state: state.update({key: state[key][..., :-1].clone()})


PREFIX = "model.base_model.model.layers.1."
FAULTS = [
    (LLM, without(f"{PREFIX}mlp.up_proj.weight"), "missing model.layers.1.mlp.up_proj.weight"),
    (LLM, renamed(f"{PREFIX}mlp.up_proj.weight"), "unknown model.layers.1.mlp.up_proj.weight2"),
    (LLM, reshaped(f"{PREFIX}mlp.up_proj.weight"), r"model.layers.1.mlp.up_proj.weight is \[172, 63\]"),
    (LLM, without(f"{PREFIX}self_attn.v_proj.lora_A.default.weight"), "one half of the LoRA"),
    (QUERIES, without("lm_head.weight"), "missing lm_head.weight"),
    (QUERIES, without("sd_query_tokens"), "lack sd_query_tokens"),
    (QUERIES, renamed("mm_projector.bias"), "unknown bias2"),
    ("modulate-15000/adapter_model.bin", reshaped("modulate_head.bias"), r"modulate_head.bias is \[47\]"),
    ("unet-15000/adapter_model.bin", without("unet.conv_out.bias"), "missing conv_out.bias"),
]


@pytest.mark.parametrize(("file", "fault", "message"), FAULTS)
def test_faulty_files_are_one_error(copied, tmp_path, file, fault, message):
    change(copied / file, fault)
    with pytest.raises(MRCError, match=message):
        converted(copied, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Runs:
    def __reduce__(self):
        return (open, ("/tmp/never", "w"))


@pytest.mark.parametrize("file", [LLM, QUERIES, "unet-15000/adapter_model.bin"])
def test_code_in_a_pickle_is_refused(copied, tmp_path, file):
    torch.save({"weight": Runs()}, copied / file, pickle_module=pickle)
    with pytest.raises(MRCError, match="could run code"):
        converted(copied, tmp_path / "out")


@pytest.mark.parametrize("name", [LLM, "vision/model.safetensors", "tokenizer/tokenizer.model", "sd/vae/config.json"])
def test_missing_files_are_one_error(copied, tmp_path, name):
    (copied / name).unlink()
    with pytest.raises(MRCError, match=name.split("/")[0].split("-")[0] + "[/-]"):
        converted(copied, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", [{"hidden_size": "wide"}, {"num_attention_heads": 7}, {"vision_config": 1}])
def test_a_damaged_vision_config_is_one_error(copied, tmp_path, wrong):
    path = copied / "vision" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    with pytest.raises(MRCError, match=r"vision/config.json describes no vision encoder"):
        converted(copied, tmp_path / "out")


def test_other_folders_are_not_replaced(release, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(MRCError, match="exists already"):
        converted(release, tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
    converted(release, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "mine.txt").exists()
    assert load_smartedit(tmp_path / "out").llm.config.num_hidden_layers == 2
