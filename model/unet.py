"""The MRC U-Net: diffusers' Stable Diffusion U-Net and the reward condition (released `unet/`)."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import FrozenDict
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d_blocks import CrossAttnDownBlock2D, CrossAttnUpBlock2D, UNetMidBlock2DCrossAttn
from torch import nn

from ..core.errors import MRCError
from .guidance import EMBEDDED, GuidanceEmbedding
from .rewards import RewardConditioning
from .settings import check_unet_settings

DOWN_BLOCKS = {"CrossAttnDownBlock2D", "DownBlock2D"}
UP_BLOCKS = {"CrossAttnUpBlock2D", "UpBlock2D"}
REWARD_INJECTIONS = ("time", "blocks")


class MRCUNet(RewardConditioning, UNet2DConditionModel):
    """InstructPix2Pix U-Net with rewards.

    Takes the keywords of diffusers' `UNet2DConditionModel` (a released `unet/config.json` without
    its underscored entries). `rewards=False` gives a plain InstructPix2Pix U-Net.

    `reward_injection="time"` is the released code: a bias of the timestep embedding and one reward
    layer after `conv_in`. `"blocks"` is the paper's figure 5: it also has one reward layer after every
    down, mid and up block, and a type embedding of the tokens. The layers change what goes on to the
    next block; the skip connections keep the down blocks' own outputs.

    `feature_bias=True` is SmartEdit's U-Net: it adds a feature map, which is an input, to what `conv_in` gives.

    `time_embedding_type="guidance"` is a distilled student's: the guidance scales are an input (`embed_guidance`).

    Raises:
        MRCError: a keyword that diffusers does not know, a setting that is not computed here, a block type outside
            SD 1.x, another `reward_injection`, or a width that the reward layers' heads do not divide.
    """

    # What diffusers' class makes, for the type checker
    config: FrozenDict
    conv_in: nn.Conv2d
    time_proj: Timesteps
    time_embedding: TimestepEmbedding
    down_blocks: Sequence[CrossAttnDownBlock2D]
    mid_block: UNetMidBlock2DCrossAttn
    up_blocks: Sequence[CrossAttnUpBlock2D]
    conv_norm_out: nn.GroupNorm
    conv_act: nn.SiLU
    conv_out: nn.Conv2d

    def __init__(
        self, rewards: bool = True, reward_injection: str = "time", feature_bias: bool = False, **config: Any
    ) -> None:
        if reward_injection not in REWARD_INJECTIONS:
            raise MRCError(f"reward_injection is {reward_injection!r}; choose one of {', '.join(REWARD_INJECTIONS)}")
        if reward_injection == "blocks" and not rewards:
            raise MRCError("reward_injection is 'blocks' and rewards is False; a U-Net without rewards injects none")
        if unknown := sorted(config.keys() - inspect.signature(UNet2DConditionModel.__init__).parameters.keys()):
            raise MRCError(f"unet config has unknown entries {unknown}; remove them or update diffusers")
        blocks = {*config.get("down_block_types", ()), *config.get("up_block_types", ())}
        if other := sorted(blocks - DOWN_BLOCKS - UP_BLOCKS):
            raise MRCError(f"unet config has blocks {other}; MRC is built on {sorted(DOWN_BLOCKS | UP_BLOCKS)}")
        embeds_guidance = config.get("time_embedding_type") == EMBEDDED
        if embeds_guidance:
            config = config | {"time_embedding_type": "positional"}
        check_unet_settings(config)
        super().__init__(**config)
        self.rewards = rewards
        self.reward_injection = reward_injection
        self.feature_bias = feature_bias
        if rewards:
            widths = self.config.block_out_channels
            outputs = (*widths, widths[-1], *reversed(widths)) if reward_injection == "blocks" else ()
            self.build_rewards(widths[0], self.config.cross_attention_dim, self.config.norm_num_groups, outputs)
        self.embeds_guidance = False
        if embeds_guidance:
            self.embed_guidance()

    def embed_guidance(self) -> None:
        """Make it a student's U-Net, in place, which takes the guidance scales and is the same function of the rest."""
        weight = self.conv_in.weight
        self.guidance_embedding = GuidanceEmbedding(self.config.block_out_channels[0]).to(weight.device, weight.dtype)
        self.register_to_config(time_embedding_type=EMBEDDED)  # type: ignore[operator]  # a method of diffusers
        self.embeds_guidance = True

    def check_conditions(
        self,
        reward_scores: torch.Tensor | None,
        reward_text_embeds: torch.Tensor | None,
        feature_bias: torch.Tensor | None,
        guidance_scales: torch.Tensor | None,
    ) -> None:
        if self.rewards != (reward_scores is not None) or self.rewards != (reward_text_embeds is not None):
            need = "needs both reward_scores and reward_text_embeds" if self.rewards else "has no reward modules"
            raise MRCError(f"this U-Net {need}; pass {'both' if self.rewards else 'neither'}")
        if self.feature_bias != (feature_bias is not None):
            need = "needs a feature_bias" if self.feature_bias else "takes no feature_bias"
            raise MRCError(f"this U-Net {need}; pass {'one' if self.feature_bias else 'none'}")
        if self.embeds_guidance != (guidance_scales is not None):
            need = "needs guidance_scales" if self.embeds_guidance else "takes no guidance_scales"
            raise MRCError(f"this U-Net {need}; pass {'them' if self.embeds_guidance else 'none'}")

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        encoder_hidden_states: torch.Tensor,
        reward_scores: torch.Tensor | None = None,
        reward_text_embeds: torch.Tensor | None = None,
        feature_bias: torch.Tensor | None = None,
        guidance_scales: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict the noise.

        Args:
            sample: `[B, 2Z, h, w]`, scaled noisy latents and source latents.
            timestep: scalar or `[B]`, 0–1000.
            encoder_hidden_states: `[B, 77, D]`, the instruction's text states.
            reward_scores: `[B, 3]`, raw 0–5: following, preserving, quality.
            reward_text_embeds: `[B, D]`, pooled text states of the reward text.
            feature_bias: `[B, C, h, w]`, C = block_out_channels[0]; added before the reward layer.
            guidance_scales: `[B, 2]` of a student: guidance_scale, image_guidance_scale.

        Returns:
            `[B, Z, h, w]`, of the sample's dtype.

        Raises:
            MRCError: rewards, the feature bias or the scales missing, or given to a U-Net that takes none.
        """
        self.check_conditions(reward_scores, reward_text_embeds, feature_bias, guidance_scales)
        time = UNet2DConditionModel.get_time_embed(self, sample, timestep)
        if guidance_scales is not None:
            time = time + self.guidance_embedding(guidance_scales)
        emb = self.time_embedding(time)
        hidden = self.conv_in(sample)
        if feature_bias is not None:
            hidden = hidden + feature_bias
        if reward_scores is not None and reward_text_embeds is not None:
            bias, tokens = self.reward_embedding(reward_scores, reward_text_embeds)
            emb = emb + bias
            hidden = self.reward_layer(hidden, tokens)
        layers = iter(self.reward_blocks if self.rewards else ())

        def reward(hidden: torch.Tensor) -> torch.Tensor:
            return next(layers)(hidden, tokens) if self.reward_injection == "blocks" else hidden

        def text(block: torch.nn.Module) -> dict[str, torch.Tensor]:
            return {"encoder_hidden_states": encoder_hidden_states} if hasattr(block, "attentions") else {}

        skips = (hidden,)
        for block in self.down_blocks:
            hidden, more = block(hidden, temb=emb, **text(block))
            skips += more
            hidden = reward(hidden)
        hidden = reward(self.mid_block(hidden, emb, encoder_hidden_states=encoder_hidden_states))
        for block in self.up_blocks:
            used = len(block.resnets)
            skips, taken = skips[:-used], skips[-used:]
            size = skips[-1].shape[2:] if skips else None
            hidden = reward(block(hidden, temb=emb, res_hidden_states_tuple=taken, upsample_size=size, **text(block)))
        return self.conv_out(self.conv_act(self.conv_norm_out(hidden)))
