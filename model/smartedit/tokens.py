"""The language model's vocabulary: Vicuna's and 35 tokens more; its prompts.

The release cuts a text at its added tokens, drops blanks beside them, and gives each piece a leading blank of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, normalizers
from tokenizers.models import BPE

from ...core.errors import MRCError, reason

IMAGE_TOKENS = tuple(f"<img_{i}>" for i in range(32))
ADDED_TOKENS = ("<img>", "<im_start>", "<im_end>", *IMAGE_TOKENS)
BOS, EOS = 1, 2
CAPTION, IMAGES = "[cap]", "[img]"  # where a template has the instruction, and the 32 image tokens
SENTENCEPIECE_BPE = 2  # model_type


@dataclass(frozen=True)
class Template:
    """One way to ask (`human`, with "[cap]") and to answer (`gpt`, with "[img]")."""

    human: str
    gpt: str


@dataclass(frozen=True)
class Wording:
    """The texts around an instruction.

    Attributes:
        system: what stands before all.
        roles: the names of who asks and who answers.
        caption: takes the place of "[cap]"; it has "{instruction}", and "<img_0>" where the image is.
        source: "given", the strings that the weights were trained with, or "own", this project's.
    """

    system: str
    roles: list[str]
    caption: str
    templates: list[Template]
    source: str

    def prompt(self, template: int, instruction: str) -> str:
        human = self.templates[template].human.replace(CAPTION, self.caption.replace("{instruction}", instruction))
        return f"{self.system} {self.roles[0]}: {human} {self.roles[1]}:".replace("\n", "")

    def answer(self, template: int) -> str:
        """The answer up to its 32 image tokens, which end it."""
        return self.templates[template].gpt.split(IMAGES)[0] + " ".join(IMAGE_TOKENS)


# Not what the weights were trained with: the release's strings have no licence that lets us copy them
OWN = Wording(
    system="The assistant reads an image and an instruction and answers with the edited image <img>.",
    roles=["USER", "ASSISTANT"],
    caption='"<im_start> <img_0> <im_end>{instruction}"',
    templates=[Template("Please edit the image as this says: [cap].", "Here is the edited image: [img].")],
    source="own",
)


def check_wording(wording: Wording, name: str) -> Wording:
    """Refuse texts that leave out the instruction, the image or the answer.

    Raises:
        MRCError: they do.
    """
    needs: list[tuple[str, str, tuple[str, ...]]] = [
        ("caption", wording.caption, ("{instruction}", "<im_start>", IMAGE_TOKENS[0], "<im_end>"))
    ]
    for i, template in enumerate(wording.templates):
        needs += [(f"human text of template {i}", template.human, (CAPTION,)),
                  (f"gpt text of template {i}", template.gpt, (IMAGES,))]  # fmt: skip
    for what, text, parts in needs:
        for part in parts:
            if text.count(part) != 1:
                raise MRCError(f"{name}: the {what} is {text!r:.80}; it must have {part} once")
    if len(wording.roles) != 2 or not wording.templates:
        raise MRCError(f"{name} has {len(wording.roles)} roles and {len(wording.templates)} templates; give 2 and some")
    return wording


def build_tokenizer(model: Path) -> Tokenizer:
    """The tokenizer of a SentencePiece file (`tokenizer.model` of Vicuna) with the 35 tokens.

    Raises:
        MRCError: no such file, or another kind of tokenizer.
    """
    from transformers.utils import sentencepiece_model_pb2_new as sentencepiece

    proto = sentencepiece.ModelProto()
    try:
        proto.ParseFromString(model.read_bytes())
    except FileNotFoundError:
        raise MRCError(f"{model} is missing; put Vicuna's tokenizer.model there") from None
    except Exception as error:  # protobuf's own
        raise MRCError(f"{model} is no SentencePiece model ({reason(error)}); give Vicuna's tokenizer.model") from None
    if proto.trainer_spec.model_type != SENTENCEPIECE_BPE or not proto.trainer_spec.byte_fallback:
        raise MRCError(f"{model} is no byte-fallback BPE; give Vicuna's tokenizer.model")
    return tokenizer_of({piece.piece: i for i, piece in enumerate(proto.pieces)})


def tokenizer_of(vocabulary: dict[str, int]) -> Tokenizer:
    """The tokenizer of pieces whose numbers are their ranks."""
    from transformers.tokenization_utils_base import generate_merges

    tokenizer = Tokenizer(
        BPE(vocab=vocabulary, merges=generate_merges(vocabulary), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    # a leading blank for every piece between added tokens
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_tokens([AddedToken(each, lstrip=True, rstrip=True, normalized=False) for each in ADDED_TOKENS])
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids, the first of which begins the text."""
    return [BOS, *tokenizer.encode(text, add_special_tokens=False).ids]


def check_instruction(instruction: str) -> None:
    """Refuse an instruction that holds one of the added tokens, which mean places in the prompt."""
    if found := [token for token in ADDED_TOKENS if token in instruction]:
        raise MRCError(f"the instruction has {found[0]}, which is a token of the model; leave it out",
                       argument="instruction")  # fmt: skip


def image_token_ids(tokenizer: Tokenizer) -> list[int]:
    """Numbers of the 32 image tokens, in their order."""
    return numbers(tokenizer, IMAGE_TOKENS)


def numbers(tokenizer: Tokenizer, tokens: Sequence[str]) -> list[int]:
    ids = [-1 if (number := tokenizer.token_to_id(token)) is None else number for token in tokens]
    if -1 in ids or ids != list(range(ids[0], ids[0] + len(ids))):
        raise MRCError(f"the tokenizer lacks {tokens[0]} or a later token in a row; convert the model again")
    return ids
