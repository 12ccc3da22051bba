"""A SmartEdit folder: a checkpoint folder and, beside its parts, those that read image and instruction.

    smartedit.json   kind, wording
    vision/ projector/ llm/ qformer/ bim/   config.json and safetensors, under the released names
    llm_tokenizer/tokenizer.json

The language model may be in shards. Every tensor must be there, under its name and of its shape.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import torch
from tokenizers import Tokenizer
from torch import nn
from tqdm import tqdm
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from ...core.errors import MRCError, reason
from ...core.files import read_record, write_json
from ...core.memory import check_memory
from ...core.schema import Between, JsonObject
from ..checkpoint import built
from ..weights import fill, read_weights
from . import CONFIG
from .bim import BIM
from .qformer import QFormer
from .tokens import ADDED_TOKENS, Wording, check_wording, numbers

REMEDY = "the folder is incomplete or damaged, convert the model again"
TOKENIZER = "llm_tokenizer/tokenizer.json"
KIND = "smartedit"
Config = TypeVar("Config", CLIPVisionConfig, LlamaConfig)
Size = Annotated[int, Between(1, 65_536)]


@dataclass(frozen=True)
class Settings:
    """`smartedit.json`."""

    kind: str
    wording: Wording


@dataclass(frozen=True)
class QFormerSizes:
    """`qformer/config.json`: the arguments of `QFormer`."""

    queries: Size
    width: Size
    heads: Size
    feed_forward: Size
    layers: Annotated[int, Between(1, 64)]
    context_width: Size


@dataclass(frozen=True)
class BIMSizes:
    """`bim/config.json`: the arguments of `BIM`."""

    width: Size
    text_width: Size
    channels: Size
    hidden: Size
    depth: Annotated[int, Between(1, 64)]


@dataclass(frozen=True)
class SmartEdit:
    """What reads image and instruction; in evaluation mode on the CPU, without gradients.

    All is float32 but the language model.
    """

    vision: CLIPVisionModel
    projector: nn.Linear
    llm: LlamaForCausalLM
    tokenizer: Tokenizer
    qformer: QFormer
    bim: BIM
    wording: Wording


def is_smartedit(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def load_smartedit(folder: Path, llm_dtype: torch.dtype = torch.float32) -> SmartEdit:
    """Load the parts of a SmartEdit folder that read image and instruction.

    Args:
        llm_dtype: of the language model.

    Raises:
        MRCError: no SmartEdit folder, a part or tensor that is missing, unknown, pickled or of another shape, parts
            that do not fit together, or too little memory for the language model.
    """
    settings = read_settings(folder)
    vision = built(folder / "vision", vision_model)
    llm = built(folder / "llm", language_model)
    sizes = read_record(folder / "qformer" / "config.json", QFormerSizes, REMEDY)
    bim_sizes = read_record(folder / "bim" / "config.json", BIMSizes, REMEDY)
    check_sizes(folder, vision.config, llm.config, sizes, bim_sizes)
    tokenizer = read_tokenizer(folder / TOKENIZER, llm.config.vocab_size)
    parameters = sum(parameter.numel() for parameter in llm.parameters())
    check_memory(parameters * llm_dtype.itemsize, f"the language model in {dtype_name(llm_dtype)}")
    projector = nn.Linear(vision.config.hidden_size, llm.config.hidden_size, device="meta")
    frequencies = llm.model.rotary_emb.inv_freq.clone()
    with tqdm(total=4, desc="load SmartEdit", leave=False, disable=None) as progress:
        qformer, bim = load_conditioning(folder)
        progress.update()
        fill(projector, read_weights(folder, "projector", torch.float32), torch.float32, folder / "projector")
        progress.update()
        fill(vision, vision_state(vision, folder), torch.float32, folder / "vision")
        progress.update()
        fill(llm, read_weights(folder, "llm", llm_dtype), llm_dtype, folder / "llm")
        progress.update()
    llm.model.rotary_emb.inv_freq = frequencies  # in float32 whatever the precision of the weights
    return SmartEdit(vision, projector, llm, tokenizer, qformer, bim, settings.wording)


def load_conditioning(folder: Path) -> tuple[QFormer, BIM]:
    """Q-Former and BIM in float32, which turn the states of the image tokens into conditions of the U-Net.

    Raises:
        MRCError: a part that is missing or damaged.
    """
    sizes = read_record(folder / "qformer" / "config.json", QFormerSizes, REMEDY)
    bim_sizes = read_record(folder / "bim" / "config.json", BIMSizes, REMEDY)
    with torch.device("meta"):
        qformer, bim = QFormer(**asdict(sizes)), BIM(**asdict(bim_sizes))
    for part, module in (("qformer", qformer), ("bim", bim)):
        fill(module, read_weights(folder, part, torch.float32), torch.float32, folder / part)
    return qformer, bim


def vision_model(config: JsonObject) -> CLIPVisionModel:
    return CLIPVisionModel(plain_attention(CLIPVisionConfig(**config)))


def language_model(config: JsonObject) -> LlamaForCausalLM:
    return LlamaForCausalLM(plain_attention(LlamaConfig(**config)))


def plain_attention(config: Config) -> Config:
    """PyTorch's attention, whatever the file asks for: transformers would fetch and run a kernel that it names."""
    config._attn_implementation = "sdpa"
    return config


def read_settings(folder: Path) -> Settings:
    settings = read_record(folder / CONFIG, Settings, REMEDY)
    if settings.kind != KIND:
        raise MRCError(f"{folder / CONFIG}: kind is {settings.kind!r}, not {KIND!r}; {REMEDY}")
    check_wording(settings.wording, str(folder / CONFIG))
    return settings


def write_settings(folder: Path, wording: Wording) -> None:
    write_json(folder / CONFIG, asdict(Settings(KIND, wording)))


def vision_state(vision: CLIPVisionModel, folder: Path) -> dict[str, torch.Tensor]:
    """The encoder's tensors; published files put "vision_model." in front, some libraries do not."""
    prefixed = next(iter(vision.state_dict())).startswith("vision_model.")
    return {
        ("vision_model." if prefixed else "") + key.removeprefix("vision_model."): value
        for key, value in read_weights(folder, "vision", torch.float32).items()
        if not key.endswith("position_ids")  # an integer buffer that old libraries saved
    }


def read_tokenizer(path: Path, rows: int) -> Tokenizer:
    if not path.is_file():
        raise MRCError(f"{path} is missing; {REMEDY}")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise MRCError(f"{path} is no tokenizer ({reason(error)}); {REMEDY}") from None
    last = max(numbers(tokenizer, ADDED_TOKENS))
    if last + 1 > rows:
        raise MRCError(f"{path} has token {last} and the language model {rows} rows; {REMEDY}")
    return tokenizer


def check_sizes(folder: Path, vision: CLIPVisionConfig, llm: LlamaConfig, qformer: QFormerSizes, bim: BIMSizes) -> None:
    """Refuse parts of different models."""
    for what, one, other in (
        ("the Q-Former reads states of width", qformer.context_width, llm.hidden_size),
        ("the BIM reads features of width", bim.width, vision.hidden_size),
        ("the BIM reads queries of width", bim.text_width, qformer.width),
    ):
        if one != other:
            raise MRCError(f"{folder}: {what} {one} and gets {other}; take all parts from one model")
    if qformer.width % qformer.heads:
        raise MRCError(f"{folder}/qformer: {qformer.heads} heads do not divide the width {qformer.width}; {REMEDY}")


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
