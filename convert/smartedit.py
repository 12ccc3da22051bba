"""`mrc-convert smartedit`: the release's four pickles and the public models beside them become one folder.

The source folder holds TencentARC/SmartEdit-7B or -13B as it is downloaded and, beside it,
    vision/      config.json, model.safetensors of openai/clip-vit-large-patch14
    tokenizer/   tokenizer.model of Vicuna 1.1
    sd/          vae, text_encoder, tokenizer, scheduler of timbrooks/instruct-pix2pix
Tensors go from the old files to the new ones by and by: no more than one shard is in memory at a time.
"""

import argparse
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from ..core.defaults import Defaults, write_defaults
from ..core.errors import MRCError, reason
from ..core.files import anything, nothing, read_json, replace_folder, write_json
from ..core.schema import parse
from ..model.checkpoint import CHECKPOINT_FILES, load_checkpoint, write_weights
from ..model.smartedit.folder import (
    TOKENIZER,
    BIMSizes,
    QFormerSizes,
    check_sizes,
    plain_attention,
    read_tokenizer,
    write_settings,
)
from ..model.smartedit.tokens import OWN, Wording, build_tokenizer, check_wording
from ..model.weights import WEIGHTS
from .pickles import read_pickle
from .smartedit_sizes import bim_sizes, llm_config, qformer_sizes, unet_config

FILES = {
    "llm": "LLM-*/adapter_model.bin",
    "qformer": "embeddings_qformer/*_embeddings_qformer.bin",
    "bim": "modulate-*/adapter_model.bin",
    "unet": "unet-*/adapter_model.bin",
}
LLM_PREFIX = "model.base_model.model."
LORA_A, LORA_B = ".lora_A.default.weight", ".lora_B.default.weight"
LORA_SCALE = 2.0  # α 16 / rank 8
SHARD = 2 << 30  # bytes
STEPS = 100  # of the released script
Source = tuple[torch.Size, int, Callable[[], Tensor]]  # shape, bytes, and what gives the tensor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="folder of the release with vision, tokenizer and sd beside it")
    parser.add_argument("out", type=Path, help="SmartEdit folder to write")
    parser.add_argument(
        "--templates", type=Path, help="JSON of the strings that the weights were trained with (default: our wording)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT whatever it holds (default: no)")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON (default: no)")


def run(args: argparse.Namespace) -> None:
    wording = convert_smartedit(args.source, args.out, args.templates, overwrite=args.overwrite)
    if args.json:
        print(json.dumps({"output": str(args.out), "wording": wording.source}))
    else:
        print(f"{args.out}: with {wording.source} wording")


def convert_smartedit(
    source: Path, target: Path, templates: Path | None = None, overwrite: bool = False, qformer_heads: int = 12
) -> Wording:
    """Write the SmartEdit folder `target`; returns the wording in it.

    Args:
        templates: a JSON object with `system`, `roles`, `caption` and `templates`, the release's strings; None for
            the project's own wording, which the weights were not trained with.
        qformer_heads: that the files do not tell; 12 in both releases.

    Raises:
        MRCError: files that are missing, damaged, or hold other objects than tensors; tensors that are missing,
            unknown or of another shape; a `target` that holds something.
    """
    wording = OWN if templates is None else read_wording(templates)
    paths = {part: only_file(source, pattern) for part, pattern in FILES.items()}
    with replace_folder(target, anything if overwrite else nothing) as out, torch.no_grad():
        pickles = {part: read_pickle(path)[0] for part, path in paths.items()}
        write_base(source / "sd", out, pickles["unet"], paths["unet"])
        llm = llm_config(pickles["llm"], LLM_PREFIX)
        vision = write_vision(source / "vision", out / "vision")
        qformer, bim = qformer_sizes(pickles["qformer"], qformer_heads), bim_sizes(pickles["bim"])
        check_sizes(source, vision, llm, qformer, bim)
        write_readers(out, pickles, paths, qformer, bim)
        write_llm(out / "llm", pickles["llm"], pickles["qformer"], llm, paths["llm"])
        (out / TOKENIZER).parent.mkdir()
        build_tokenizer(source / "tokenizer" / "tokenizer.model").save(str(out / TOKENIZER))
        read_tokenizer(out / TOKENIZER, llm.vocab_size)
        write_settings(out, wording)
        write_defaults(out, Defaults(num_inference_steps=STEPS))
        try:
            load_checkpoint(out)
        except MRCError as error:  # name the user's files
            message = str(error).replace(str(out / "unet"), str(paths["unet"])).replace(str(out), str(source / "sd"))
            raise MRCError(message) from None
    return wording


def only_file(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise MRCError(f"{folder} has {len(found)} files {pattern}, not one; download the release again")
    return found[0]


def read_wording(path: Path) -> Wording:
    remedy = "give the strings that the weights were trained with"
    content = read_json(path, remedy)
    taken = {key: content[key] for key in ("system", "roles", "caption", "templates") if key in content}
    return check_wording(parse(Wording, taken | {"source": "given"}, str(path)), str(path))


def write_base(source: Path, out: Path, unet: dict[str, Tensor], path: Path) -> None:
    """The checkpoint folder: the release's U-Net and InstructPix2Pix's other parts."""
    for name in CHECKPOINT_FILES:
        if name.split("/")[0] not in ("unet", "defaults.json") and (source / name).is_file():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, out / name)
    missing = [part for part in ("vae", "text_encoder", "tokenizer", "scheduler") if not (out / part).is_dir()]
    if missing or not (out / "model_index.json").is_file():
        raise MRCError(f"{source} lacks {', '.join(missing) or 'model_index.json'}; put instruct-pix2pix there")
    state = {key.removeprefix("unet."): value for key, value in unet.items()}
    write_tensors(out / "unet", {key: given(value) for key, value in state.items()}, WEIGHTS["unet"])
    write_json(out / "unet" / "config.json", unet_config(state, path))


def write_vision(source: Path, out: Path) -> CLIPVisionConfig:
    """The vision encoder, also out of a file that holds all of CLIP."""
    remedy = "put clip-vit-large-patch14 there, its config.json and model.safetensors"
    settings = read_json(source / "config.json", remedy)
    try:
        config = CLIPVisionConfig(**settings.get("vision_config", settings))
        with init_empty_weights():
            encoder = CLIPVisionModel(plain_attention(config))
    except Exception as error:  # transformers raises many types for a wrong value
        raise MRCError(f"{source / 'config.json'} describes no vision encoder ({reason(error)}); {remedy}") from None
    try:
        state = load_file(source / "model.safetensors")
    except Exception as error:  # safetensors' own, and OSError
        raise MRCError(f"{source / 'model.safetensors'} cannot be read ({error}); {remedy}") from None
    start = "vision_model."
    kept = {key: value for key, value in state.items() if key.startswith(start) and not key.endswith("position_ids")}
    expected = {start + key.removeprefix(start): value for key, value in encoder.state_dict().items()}
    check_tensors(expected, {key: value.shape for key, value in kept.items()}, source / "model.safetensors")
    write_tensors(out, {key: given(value) for key, value in kept.items()})
    config.save_pretrained(out)
    return config


def write_readers(
    out: Path, pickles: dict[str, dict[str, Tensor]], paths: dict[str, Path], qformer: QFormerSizes, bim: BIMSizes
) -> None:
    """Projector, Q-Former and BIM."""
    from ..model.smartedit.bim import BIM
    from ..model.smartedit.qformer import QFormer

    queries = {key: value for key, value in pickles["qformer"].items() if not key.endswith("position_ids")}
    queries.pop("lm_head.weight", None)
    start = "mm_projector."
    projector = {key.removeprefix(start): queries.pop(key) for key in list(queries) if key.startswith(start)}
    linear = nn.Linear(bim.width, qformer.context_width, device="meta")
    with torch.device("meta"):
        modules: dict[str, nn.Module] = {"qformer": QFormer(**asdict(qformer)), "bim": BIM(**asdict(bim))}
    for part, module, state, path in (
        ("projector", linear, projector, paths["qformer"]),
        ("qformer", modules["qformer"], queries, paths["qformer"]),
        ("bim", modules["bim"], pickles["bim"], paths["bim"]),
    ):
        check_tensors(module.state_dict(), {key: value.shape for key, value in state.items()}, path)
        write_tensors(out / part, {key: given(value) for key, value in state.items()})
    write_json(out / "qformer" / "config.json", asdict(qformer))
    write_json(out / "bim" / "config.json", asdict(bim))


def write_llm(out: Path, state: dict[str, Tensor], queries: dict[str, Tensor], config: LlamaConfig, path: Path) -> None:
    """The language model with the LoRA folded into it, and the head that lies with the Q-Former."""
    sources, used = {}, set()
    for key, value in state.items():
        if key.endswith("inv_freq") or ".lora_" in key:
            continue
        stem = key.removesuffix(".weight")
        lora = [state[stem + end] for end in (LORA_A, LORA_B) if stem + end in state]
        used |= {stem + end for end in (LORA_A, LORA_B)}
        if len(lora) == 1:
            raise MRCError(f"{path} has one half of the LoRA of {key}; download the release again")
        name = "model." + key.removeprefix(LLM_PREFIX)
        sources[name] = given(value, *lora)
    if left := sorted(key for key in state if ".lora_" in key and key not in used):
        raise MRCError(f"{path} has {left[0]} without the weight that it is for; download the release again")
    if "lm_head.weight" in queries:
        sources["lm_head.weight"] = given(queries["lm_head.weight"])
    with init_empty_weights():
        expected = LlamaForCausalLM(config).state_dict()
    check_tensors(expected, {name: shape for name, (shape, _, _) in sources.items()}, path)
    write_tensors(out, sources)
    config.save_pretrained(out)


def given(value: Tensor, *lora: Tensor) -> Source:
    """A tensor of a mapped file, alone in memory once it is asked for; with the LoRA A `[r, i]`, B `[o, r]` added."""

    def tensor() -> Tensor:
        if not lora:
            return value.clone().contiguous()
        a, b = (half.float() for half in lora)
        return (value.float() + LORA_SCALE * (b @ a)).to(value.dtype)

    return value.shape, value.nbytes, tensor


def check_tensors(expected: dict[str, Tensor], got: dict[str, torch.Size], path: Path) -> None:
    """Refuse tensors that are missing, unknown or of another shape."""
    faults = [f"missing {key}" for key in sorted(expected.keys() - got.keys())]
    faults += [f"unknown {key}" for key in sorted(got.keys() - expected.keys())]
    faults += [
        f"{key} is {list(got[key])}, not {list(expected[key].shape)}"
        for key in sorted(expected.keys() & got.keys())
        if got[key] != expected[key].shape
    ]
    if faults:
        raise MRCError(f"{path}: {len(faults)} tensors do not fit: {'; '.join(faults[:8])}; download the release again")


def write_tensors(folder: Path, sources: dict[str, Source], name: str = "model.safetensors") -> None:
    """Write tensors as one file, or as shards of 2 GB with their index; one shard is in memory at a time."""
    shards: list[dict[str, Source]] = [{}]
    for key, source in sources.items():
        if shards[-1] and sum(size for _, size, _ in shards[-1].values()) + source[1] > SHARD:
            shards.append({})
        shards[-1][key] = source
    places: dict[str, str] = {}
    stem = name.removesuffix(".safetensors")
    for i, shard in enumerate(tqdm(shards, desc=f"write {folder.name}", leave=False, disable=None)):
        file = name if len(shards) == 1 else f"{stem}-{i + 1:05}-of-{len(shards):05}.safetensors"
        write_weights({key: tensor() for key, (_, _, tensor) in shard.items()}, folder / file)
        places |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        total = sum(size for _, size, _ in sources.values())
        write_json(folder / f"{name}.index.json", {"metadata": {"total_size": total}, "weight_map": places})
