"""`MRCPipeline`: diffusers' pipeline for InstructPix2Pix, with rewards (docs/diffusers.md).

The stock pipeline opens an MRC checkpoint too, but drops its reward tensors with a warning and edits without them.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderTiny, StableDiffusionInstructPix2PixPipeline
from diffusers.utils import get_adapter_name

from ..core import hub
from ..core.defaults import Defaults
from ..core.errors import MRCError
from ..core.reward import BEST
from ..engine.arguments import check_guidance
from ..engine.backends.eager import geometry
from ..engine.models import layout_folders, model_folder
from ..engine.plan import BranchRewards
from ..engine.rewards import BranchScores, Scores, check_has_rewards, each_reward
from ..engine.sampling import sampler_of
from ..engine.text import tokenize, whole_texts
from ..model import Checkpoint, MRCUNet, load_checkpoint, save_checkpoint
from ..model.adapter_files import read_adapter_file
from ..model.lora import change, matched, weights_of
from ..model.scheduler import scheduler_config
from ..model.tiny_vae import TinyVae
from .diffusers_arguments import check_pairs, count_images, refuse_unknown, rgb

SCHEDULERS = {  # classes of diffusers, by sampler in `Defaults`
    "euler": "EulerDiscreteScheduler", "euler_ancestral": "EulerAncestralDiscreteScheduler", "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler", "lcm": "LCMScheduler",
}  # fmt: skip
Conditions = dict[str, torch.Tensor]


class MRCPipeline(StableDiffusionInstructPix2PixPipeline):
    """`StableDiffusionInstructPix2PixPipeline` over an MRC or a plain InstructPix2Pix checkpoint.

    Open one with `from_pretrained`. All that is not documented here is as in diffusers.
    """

    defaults = Defaults()  # for arguments of a call; those of the checkpoint where it was opened from one

    def register_modules(self, **modules: Any) -> None:
        """As diffusers, which calls it with all parts.

        Raises:
            MRCError: `unet` is not one of this package, or one of SmartEdit; `vae` is a tiny one of diffusers' class.
        """
        unet, vae = modules.get("unet"), modules.get("vae")
        if not isinstance(unet, MRCUNet):
            raise MRCError(f"unet is a {type(unet).__name__}, which has no rewards; open the model by from_pretrained")
        if unet.feature_bias:
            raise MRCError("this is a SmartEdit model, which reads instructions with the image; edit with Engine")
        if isinstance(vae, AutoencoderTiny) and not isinstance(vae, TinyVae):
            raise MRCError(
                "vae is an AutoencoderTiny, whose latents are scaled, and the U-Net takes unscaled source latents; "
                "give from_pretrained the folder of the VAE"
            )
        super().register_modules(**modules)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        torch_dtype: torch.dtype = torch.float32,
        variant: str | None = None,
        vae: Any = None,
        base: str | Path | None = None,
        **parts: Any,
    ) -> "MRCPipeline":
        """Open a checkpoint, strictly: every tensor finds its place, or it is an error.

        Args:
            model: as for `Engine.from_pretrained`: a folder, a `.safetensors` file, "mini", or OWNER/NAME on the hub,
                where @REVISION may follow.
            torch_dtype: of all weights.
            variant, base: as in `mrc_edit.model.load_checkpoint`.
            vae: folder or file of another VAE, or the module.
            parts: modules in place of the checkpoint's own, such as `scheduler`. A checkpoint's safety checker is not
                loaded; it may be given here, with its `feature_extractor`.

        Raises:
            MRCError: as `load_checkpoint`, such as a part of the reward tensors missing; not a model for editing; a
                keyword of diffusers' own loader that this one does not have.
        """
        names = inspect.signature(cls.__init__).parameters.keys() - {"self"}
        if unknown := sorted(parts.keys() - names):
            raise MRCError(
                f"from_pretrained has no {', '.join(unknown)}; a revision follows the name (OWNER/NAME@REVISION), the "
                "environment has HF_TOKEN, HF_HOME and HF_HUB_OFFLINE, and .to() chooses the device"
            )
        if not (isinstance(torch_dtype, torch.dtype) and torch_dtype.is_floating_point):
            raise MRCError(f"torch_dtype is {torch_dtype!r}; give one such as torch.float16")
        layout: dict[str, Any] = {"variant": variant, "base": base}
        if vae is not None:
            (layout if isinstance(vae, str | Path) else parts)["vae"] = vae
        layout = {name: value for name, value in layout.items() if value is not None}
        checkpoint = load_checkpoint(model_folder(model, "eager", None, layout), torch_dtype, **layout_folders(layout))
        if geometry(checkpoint).embeds_guidance:  # which also refuses a model that makes images from texts
            raise MRCError(f"{model} is a distilled student, whose scales are conditions; open it by Engine")
        own = dict.fromkeys(("safety_checker", "feature_extractor")) | vars(checkpoint)
        del own["defaults"]
        pipe = cls(**own | {"scheduler": own_scheduler(checkpoint), "requires_safety_checker": False} | parts)
        pipe.defaults = replace(checkpoint.defaults, scheduler=None)  # the scheduler is that one now
        return pipe

    @classmethod
    def from_single_file(cls, model: str | Path, **options: Any) -> "MRCPipeline":
        """As `from_pretrained`; `base` is a folder with the tokenizer and the settings."""
        return cls.from_pretrained(model, **options)

    @classmethod
    def from_pipe(cls, pipeline: diffusers.DiffusionPipeline, **options: Any) -> "MRCPipeline":
        """As diffusers; the defaults are those of `pipeline`, where it has any."""
        pipe = super().from_pipe(pipeline, **{"unet": pipeline.unet} | options)  # diffusers leaves out an `MRCUNet`
        pipe.defaults = getattr(pipeline, "defaults", cls.defaults)
        return pipe

    @property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.unet, self.vae, self.text_encoder, self.tokenizer, self.scheduler, self.defaults)

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write a checkpoint folder in the released layout, which `Engine` and diffusers read; whole or not at all.

        Raises:
            MRCError: a folder that holds something, a full disk, a keyword of diffusers' other than
                `safe_serialization=True`, or parts that a checkpoint does not have: a safety checker, LoRA layers.
        """
        if options.pop("safe_serialization", True) is not True or options:
            named = ", ".join(sorted(options)) or "safe_serialization=False"
            raise MRCError(f"save_pretrained has no {named}; it writes one safetensors file a part, into a new folder")
        if self.safety_checker is not None:
            raise MRCError(
                "a checkpoint has no safety checker; set pipe.safety_checker to None and give it when opening"
            )
        if any(".base_layer." in key for part in (self.unet, self.text_encoder) for key in part.state_dict()):
            raise MRCError(
                "LoRA layers are loaded, which a checkpoint does not have; call unload_lora_weights(), and before it "
                "fuse_lora() to keep their effect"
            )
        save_checkpoint(self.checkpoint, folder)

    def load_lora_weights(
        self, file: str | Path, adapter_name: str | None = None, *, weight_name: str | None = None
    ) -> None:
        """Load a LoRA file by diffusers' loader; all of it, or it is an error. `set_adapters` scales it afterwards.

        Args:
            file: a safetensors file, the folder of one, or OWNER/NAME on the hub.
            weight_name: of the file in the folder or repository.

        Raises:
            MRCError: a file for another model, or of a format that diffusers' loader takes only in part; a name that
                another LoRA has.
        """
        path = lora_file(str(file), weight_name)
        content = read_adapter_file(path)
        layers = matched(content, self.checkpoint)
        for layer in layers:
            change(content, layer)  # refuses shapes that do not fit
        name = adapter_name or get_adapter_name(self.unet)
        if any(name in names for names in self.get_list_adapters().values()):
            raise MRCError(
                f"adapter_name is {name!r}, which another LoRA has; give another, or delete_adapters({name!r})"
            )
        super().load_lora_weights(str(path.parent), name, weight_name=path.name, use_safetensors=True)
        modules = [*self.unet.modules(), *self.text_encoder.modules()]
        loaded = sum(name in getattr(module, "lora_A", ()) for module in modules)
        if loaded != len(layers):
            if loaded:
                self.delete_adapters(name)
            raise MRCError(
                f"diffusers' loader takes {loaded} of the {len(layers)} layers of {path}; open the model by "
                "Engine.from_pretrained(lora=…), which takes them all"
            )

    def load_ip_adapter(self, *args: Any, **options: Any) -> None:
        raise MRCError("this pipeline has no IP adapters; the U-Net computes what MRC's release does")

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        *,
        num_images_per_prompt: int = 1,
        reward_scores: Scores | Sequence[Scores] = BEST,
        reward_text: str | Sequence[str] | None = None,
        reward_guidance: BranchScores | Sequence[BranchScores | None] | None = None,
        reward_guidance_text: str | Sequence[str] | None = None,
        **options: Any,
    ) -> Any:
        """Edit, as diffusers does.

        Args:
            image: as in diffusers; Pillow images are read as `Engine.edit` reads them (upright, sRGB, on white), and
                keep their size, cut down to multiples of 8.
            num_inference_steps, guidance_scale, image_guidance_scale: None for the model's own default.
            reward_scores, reward_text, reward_guidance, reward_guidance_text: as in `EditRequest`, one for all prompts
                or a list.
            options: the other arguments of diffusers' pipeline.

        Raises:
            MRCError: rewards for a model that has none or out of range, guidance below 1, as many images as cannot be
                paired with the prompts, or an argument that is unknown or for attention processors.
        """
        refuse_unknown(options)
        prompts = len(options["prompt_embeds"]) if prompt is None and options.get("prompt_embeds") is not None else 1
        prompts = len(prompt) if isinstance(prompt, list) else prompts
        check_pairs(count_images(image), prompts, num_images_per_prompt)
        rewards = each_reward(reward_scores, reward_text, reward_guidance, reward_guidance_text, prompts)
        own = self.defaults
        text = own.guidance_scale if guidance_scale is None else guidance_scale
        source = own.image_guidance_scale if image_guidance_scale is None else image_guidance_scale
        with conditioned(self.unet, self.conditions(rewards, num_images_per_prompt)):
            return super().__call__(
                prompt,
                rgb(image),
                num_inference_steps=own.num_inference_steps if num_inference_steps is None else num_inference_steps,
                guidance_scale=check_guidance(text, "guidance_scale"),
                image_guidance_scale=check_guidance(source, "image_guidance_scale"),
                num_images_per_prompt=num_images_per_prompt,
                **options,
            )

    def conditions(self, rewards: list[BranchRewards], times: int) -> Conditions:
        """What the U-Net takes beside diffusers' inputs, in the order of the pipeline's rows: branch, prompt, times."""
        model = geometry(self.checkpoint)
        check_has_rewards(model, rewards)
        if not model.rewards:
            return {}
        rows = [reward for branch in zip(*rewards, strict=True) for reward in branch for _ in range(times)]
        texts = list(dict.fromkeys(text for _, text in rows))
        ids = torch.from_numpy(tokenize(whole_texts(self.tokenizer.backend_tokenizer), texts, model))
        pooled = self.text_encoder(ids.to(self._execution_device)).pooler_output
        return {
            "reward_scores": torch.tensor([scores for scores, _ in rows], dtype=torch.float32),
            "reward_text_embeds": pooled[[texts.index(text) for _, text in rows]],
        }


@contextmanager
def conditioned(unet: torch.nn.Module, conditions: Conditions) -> Iterator[None]:
    """Call `unet` with diffusers' arguments, and with the conditions of its rows; without guidance the first rows."""

    def before(module: torch.nn.Module, inputs: tuple, keywords: dict) -> tuple[tuple, dict]:
        sample = inputs[0]
        given = {name: value[: len(sample)].to(sample.device) for name, value in conditions.items()}
        if given:  # the scores are embedded in float32
            given["reward_text_embeds"] = given["reward_text_embeds"].to(sample.dtype)
        return inputs, {"encoder_hidden_states": keywords["encoder_hidden_states"], **given}

    hooks = (
        unet.register_forward_pre_hook(before, with_kwargs=True),
        unet.register_forward_hook(lambda module, inputs, noise: (noise,)),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def own_scheduler(checkpoint: Checkpoint) -> Any:
    """The scheduler that the model edits best with."""
    name, config = checkpoint.defaults.scheduler, scheduler_config(checkpoint.scheduler)
    if name is None or name == sampler_of(config):
        return checkpoint.scheduler
    return getattr(diffusers, SCHEDULERS[name]).from_config(config)


def lora_file(file: str, weight_name: str | None) -> Path:
    """The file of a LoRA: that one, the one in a folder, or `weight_name` of a folder or of a repository."""
    if not Path(file).exists() and hub.is_hub_name(file):
        if weight_name is None:
            raise MRCError(f"{file} is nothing here; of a repository on the hub also give weight_name, the file in it")
        return hub.snapshot(file, lambda files: [weight_name]) / weight_name
    return weights_of(Path(file) / (weight_name or ""))
