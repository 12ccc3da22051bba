import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mrc_edit.core.errors import MRCError
from mrc_edit.engine import Engine
from mrc_edit.engine.backends.torch import TorchLoop
from mrc_edit.engine.graphs import EACH_STEP, GRAPHS, shapes
from mrc_edit.export.trace import constants, example_input
from mrc_edit.kernels import ops
from mrc_edit.model import load_checkpoint
from mrc_edit.model.graphs import graph_module
from mrc_edit.model.layers import merge_projections, self_projections, transformer_layers
from mrc_edit.model.seeded import seeded_checkpoint

LATENT = {"num_inference_steps": 3, "resolution": 0, "output_type": "latent", "seed": 3}


def on_device(folder):
    """An engine whose latents stay on the device, as they do by default on a card."""
    engine = Engine.from_pretrained(folder, "torch", precision="float32")
    engine.backend.device_loop = TorchLoop(engine.backend.device)
    return engine


def test_the_kernels_change_nothing(fused, photo, error):
    found = fused.edit(photo, "make it snow", **LATENT).images
    with ops.reference_kernels():
        expected = fused.edit(photo, "make it snow", **LATENT).images
    assert error(found, expected) <= 1e-5
    assert not np.array_equal(found, expected)  # the switch did switch


def test_a_batch_is_what_its_images_are_alone(fused, photo, error):
    options = LATENT | {"seed": [1, 2]}
    rewards = {"reward_scores": [(5, 5, 5), (1, 2, 3)]}
    both = fused.edit([photo, photo[::-1].copy()], ["snow", "rain"], **rewards, **options).images
    alone = fused.edit(photo[::-1].copy(), "rain", reward_scores=(1, 2, 3), **LATENT | {"seed": 2}).images
    assert error(both[1:], alone) <= 1e-5


def test_a_plain_model_edits(plain, photo, error):
    engines = [Engine.from_pretrained(plain, name, precision="float32") for name in ("torch", "eager")]
    pair = [engine.edit(photo, "snow", **LATENT).images for engine in engines]
    assert error(*pair) <= 1e-4


def test_bfloat16_is_near(tiny, eager, photo, error):
    found = Engine.from_pretrained(tiny, "torch", precision="bfloat16").edit(photo, "snow", **LATENT).images
    assert 1e-4 < error(found, eager.edit(photo, "snow", **LATENT).images) < 0.1


@pytest.mark.parametrize("scheduler", ["euler", "euler_ancestral", "ddim", "dpmpp_2m"])
def test_latents_that_stay_on_the_device_are_those_of_the_loop(tiny, fused, photo, error, scheduler):
    staying = on_device(tiny)
    asked = LATENT | {"seed": [1, 2], "scheduler": scheduler, "reward_scores": [(5, 5, 5), (1, 4, 2)]}
    pair = [engine.edit([photo, photo[::-1]], ["snow", ""], **asked).images for engine in (staying, fused)]
    assert error(*pair) <= 1e-5


def test_a_callback_may_change_latents_that_stay_on_the_device(tiny, fused, photo, error):
    """What it returns is used as in the host's loop, and a wrong shape is refused."""

    def halve(engine, step, timestep, tensors):
        return {"latents": tensors["latents"] / 2} if step == 1 else None

    staying = on_device(tiny)
    results = [engine.edit(photo, "snow", callback_on_step_end=halve, **LATENT) for engine in (staying, fused)]
    assert error(*(result.images for result in results)) <= 1e-5
    assert len(results[0].step_seconds) == len(results[1].step_seconds) == 3
    with pytest.raises(MRCError, match="callback returned latents"):
        staying.edit(photo, "snow", callback_on_step_end=lambda *_: {"latents": np.zeros(3)}, **LATENT)


def test_a_plain_model_stays_on_the_device(plain, photo, error):
    engines = on_device(plain), Engine.from_pretrained(plain, "torch", precision="float32")
    engines[1].backend.device_loop = None
    pair = [engine.edit(photo, "snow", **LATENT) for engine in engines]
    assert error(*(result.images for result in pair)) <= 1e-5


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"precision": "int8"}, "float32, bfloat16"),
        ({"precision": "tf32"}, "float32, bfloat16"),
        ({"precision": "float16"}, "slowly on a CPU"),
        ({"compile": True}, "compiled for a GPU"),
        ({"loop": True}, "no option loop"),
    ],
)
def test_what_a_cpu_does_not_have(tiny, options, word):
    with pytest.raises(MRCError, match=word):
        Engine.from_pretrained(tiny, "torch", device="cpu", **options)


@pytest.mark.parametrize("graph", ["vae_encoder", "vae_decoder"])
def test_images_that_overflow_in_float16_are_computed_in_float32(tiny, photo, graph):
    """Those alone; and what is not finite even then is refused."""
    backend = Engine.from_pretrained(tiny, "torch", precision="float32", device="cpu").backend
    backend.precision = "float16"  # as on a card
    name = {"vae_encoder": "images", "vae_decoder": "latents"}[graph]
    shape = {"vae_encoder": (3, 3, 64, 64), "vae_decoder": (3, 4, 8, 8)}[graph]
    array = np.random.RandomState(0).standard_normal(shape).astype(np.float32)
    right = getattr(backend, graph)(**{name: array})
    call = backend.calls[graph]

    def overflowing(**inputs):
        outputs = call(**inputs)
        outputs[0][1] = torch.inf
        return outputs

    backend.calls[graph] = overflowing
    computed = []
    wide = backend.wide_runner(graph)

    def counted(feeds):
        computed.append(len(feeds[name]))
        return wide(feeds)

    backend.wide_runner = lambda graph: counted
    found = getattr(backend, graph)(**{name: array})
    assert np.array_equal(found[[0, 2]], right[[0, 2]]) and computed == [1]
    assert np.abs(found - right).max() <= 1e-5 * np.abs(right).max()
    output = next(iter(GRAPHS[graph].outputs))
    backend.wide_runner = lambda graph: lambda feeds: {output: torch.full((1, *right.shape[1:]), torch.nan)}
    assert not np.isfinite(getattr(backend, graph)(**{name: array})[1]).any()


def test_the_conditioner_keeps_its_own_weights_alone_in_float32(tiny):
    """A copy of the whole U-Net would be 17 times as large."""
    whole = load_checkpoint(tiny).unet.state_dict()
    backend = Engine.from_pretrained(tiny, "torch", precision="bfloat16", device="cpu").backend
    conditioner, step = backend.modules["conditioner"], backend.modules["unet"]
    own = {id(parameter) for parameter in conditioner.own()}
    shared = {id(parameter) for parameter in step.parameters()}
    for name, parameter in conditioner.unet.named_parameters():
        assert (id(parameter) in own) != (id(parameter) in shared), name
        if id(parameter) in own:
            assert parameter.dtype == torch.float32 and torch.equal(parameter, whole[name])
        else:
            assert parameter.dtype == torch.bfloat16
    assert 0 < len(own) < len(list(conditioner.parameters())) / 2


def test_merged_projections_are_those_they_were_merged_from(tiny):
    unet = load_checkpoint(tiny).unet
    attention = transformer_layers(unet)[0].attn1
    x = torch.randn(2, 5, attention.to_q.in_features)
    apart = self_projections(attention, x)
    merge_projections(unet)
    assert not hasattr(attention, "to_q")
    for merged, one in zip(self_projections(attention, x), apart, strict=True):
        assert torch.allclose(merged, one, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", EACH_STEP)
def test_a_step_compiles_as_one_graph(tiny, name, fused):
    """Without a break, which would cost launches in silence."""
    checkpoint = load_checkpoint(tiny)
    merge_projections(checkpoint.unet)
    module = graph_module(GRAPHS[name].module, checkpoint.unet, fused)
    sizes = constants(checkpoint)
    inputs = {key: example_input(key, dims, sizes) for key, dims in shapes(name, rewards=True)[0].items()}
    inputs["branch"] = torch.tensor([0, 1, 2, 3, 0, 1])
    with torch.inference_mode():
        expected = module(**inputs)
        found = torch.compile(module, dynamic=False, fullgraph=True, backend="eager")(**inputs)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", EACH_STEP)
def test_feature_maps_keep_their_channels_last(tiny, name):
    """One that loses them is copied before each convolution that follows; on a card that took 0.8 ms of a step."""
    wrong = []

    class ChannelsLast(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            maps = ("aten::add.Tensor", "aten::cat", "aten::convolution", "mrc::group_norm_silu")
            if func.name() in maps and result.dim() == 4:
                wrong.extend([func.name()] * (not result.is_contiguous(memory_format=torch.channels_last)))
            return result

    checkpoint = load_checkpoint(tiny)
    torch.nn.Module.to(checkpoint.unet, memory_format=torch.channels_last)
    module = graph_module(GRAPHS[name].module, checkpoint.unet, fused=True)
    # as on a card; the four 2x2 convolutions of a CPU are put together with channels first
    plain = [block.upsamplers[0] for block in checkpoint.unet.up_blocks if block.upsamplers]
    module.upsamplers = torch.nn.ModuleList(plain)
    sizes = constants(checkpoint)
    inputs = {key: example_input(key, dims, sizes) for key, dims in shapes(name, rewards=True)[0].items()}
    if "deep" in inputs:
        inputs["deep"] = inputs["deep"].contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), ChannelsLast():
        module(**inputs)
    assert not wrong


def test_no_graph_waits_for_the_host():
    """A recording can hold no copy between host and card, and no value that the host must know."""

    class OnDevice(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            tensors = [leaf for leaf in tree_flatten((args, kwargs, result))[0] if isinstance(leaf, torch.Tensor)]
            assert all(tensor.device.type == "meta" for tensor in tensors), func.name()
            assert func.name() not in ("aten::_local_scalar_dense", "aten::nonzero"), func.name()
            return result

    checkpoint = seeded_checkpoint()
    sizes = constants(checkpoint)
    for part in (checkpoint.unet, checkpoint.vae, checkpoint.text_encoder):
        torch.nn.Module.to(part, "meta")
    for name, graph in GRAPHS.items():
        module = graph_module(graph.module, getattr(checkpoint, graph.part), fused=True)
        wanted = shapes(name, rewards=True)[0]
        inputs = {key: example_input(key, dims, sizes).to("meta") for key, dims in wanted.items()}
        with torch.inference_mode(), OnDevice():
            module(**inputs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_recorded_step_is_replayed_with_new_inputs(fused, eager, photo, error):
    for text in ("snow", "rain", "snow"):
        pair = [engine.edit(photo, text, **LATENT).images for engine in (fused, eager)]
        assert error(*pair) <= 1e-4
