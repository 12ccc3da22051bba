"""The states of the 32 image tokens: what the language model says of an image and an instruction."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ...core.errors import MRCError
from .folder import SmartEdit
from .tokens import EOS, encode, image_token_ids

Decode = Literal["template", "greedy", "sample"]
DECODES: tuple[Decode, ...] = ("template", "greedy", "sample")
TEMPERATURE = 0.7  # as released
MOST_TOKENS = 512  # of an answer, as released
Choose = Callable[[Tensor], int]  # logits `[V]` → token


def image_states(
    model: SmartEdit, features: Tensor, instruction: str, decode: Decode = "template", template: int = 0, seed: int = 0
) -> Tensor:
    """H `[32, W]` float32 of CLIP features F `[N, M]` and an instruction.

    Args:
        decode: "template" reads the template's own answer in one pass, so that an edit can be repeated. "sample" lets
            the model find its words, as released, and "greedy" takes the likeliest ones; after the first image token
            the others follow in their order, where the release takes any.
        seed: of the words of "sample".

    Raises:
        MRCError: the model ends its answer without an image.
    """
    images = image_token_ids(model.tokenizer)
    prompt = model.wording.prompt(template, instruction)
    if decode == "template":
        ids = encode(model.tokenizer, f"{prompt} {model.wording.answer(template)}")
        hidden = model.llm.model(inputs_embeds=rows(model, ids, images[0], features)).last_hidden_state
        return hidden[0, -len(images) :].float()
    generator = torch.Generator().manual_seed(seed % 2**63)

    def sampled(logits: Tensor) -> int:
        return int(torch.multinomial((logits / TEMPERATURE).softmax(0).cpu(), 1, generator=generator))

    choose: Choose = sampled if decode == "sample" else lambda logits: int(logits.argmax())
    return answer(model, rows(model, encode(model.tokenizer, prompt), images[0], features), images, choose)


def rows(model: SmartEdit, ids: list[int], place: int, features: Tensor) -> Tensor:
    """Embeddings `[1, K, W]` of `ids`, with the projected features where the first `place` is."""
    at = ids.index(place)
    projected = model.projector(features).to(model.llm.dtype)
    return torch.cat([embedded(model, ids[:at]), projected, embedded(model, ids[at + 1 :])])[None]


def embedded(model: SmartEdit, ids: list[int]) -> Tensor:
    return model.llm.get_input_embeddings()(torch.tensor(ids, dtype=torch.long, device=model.llm.device))


def answer(model: SmartEdit, prompt: Tensor, images: list[int], choose: Choose) -> Tensor:
    """Choose words after the prompt `[1, K, W]` up to the first image token; the states of all image tokens."""
    output = model.llm.model(inputs_embeds=prompt, use_cache=True)
    for _ in range(MOST_TOKENS):
        logits = model.llm.lm_head(output.last_hidden_state[0, -1]).float()
        logits[images[1:]] = -torch.inf  # the first image token comes first
        token = choose(logits)
        if token == EOS:
            break
        chosen = images if token == images[0] else [token]
        output = model.llm.model(
            inputs_embeds=embedded(model, chosen)[None], past_key_values=output.past_key_values, use_cache=True
        )
        if token == images[0]:
            return output.last_hidden_state[0].float()
    raise MRCError("the language model answered without an image; take another seed, or decode='template'")
