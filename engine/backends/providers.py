"""ONNX Runtime's execution providers: which one runs a graph, with which options, and whether it really does.

ONNX Runtime tells of a provider that it could not load in its log alone, and runs the graph on the CPU. Here that is
an error.
"""

import ctypes
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path

import onnxruntime

from ...core.errors import MRCError, reason
from ..failures import memory_ran_out
from ..manifest import Artifact
from ..profiles import Profile

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
TENSORRT, RTX = "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider"
PREFERRED = (CUDA, CPU)  # the first that this package of ONNX Runtime has
PREFIX = {TENSORRT: "trt_", RTX: "nv_"}  # of the options of the providers that build engines
# Options by the start of their names, and what to do instead
REFUSED = {
    "trt_profile_": "they differ from graph to graph: give sizes and max_batch",
    "nv_profile_": "they differ from graph to graph: give sizes and max_batch",
    "trt_engine_cache_": "engines are kept by the digest of their graph; MRC_CACHE names the folder",
    "trt_timing_cache_": "timings are kept beside the engines; MRC_CACHE names the folder",
    "enable_cuda_graph": "a recorded graph would read the inputs of the first step at every step",
    "trt_cuda_graph_enable": "a recorded graph would read the inputs of the first step at every step",
}
NEEDS = {
    CUDA: "it needs a GPU, its driver for CUDA 13, and what pip install 'mrc-edit[gpu]' brings",
    TENSORRT: "it needs a GPU, its driver for CUDA 13, pip install 'mrc-edit[gpu]' and the libraries of TensorRT 10 "
    "on LD_LIBRARY_PATH",
    RTX: "it needs a GPU, its driver, and what pip install 'mrc-edit[cpu,trt-rtx]' brings",
}
LIBRARIES = {CUDA: "libonnxruntime_providers_cuda.so", TENSORRT: "libonnxruntime_providers_tensorrt.so"}
COMPUTING = frozenset({
    "Attention", "Conv", "ConvTranspose", "DepthToSpace", "Gelu", "Gemm", "GroupNormalization",
    "InstanceNormalization", "LayerNormalization", "MatMul", "Resize", "Sigmoid", "Softmax",
})  # fmt: skip  # never of shapes, which ONNX Runtime leaves to the CPU on purpose


def choose(provider: str | None, options: Mapping[str, object] | None) -> tuple[str, dict[str, str]]:
    """The provider to use, registered where it is a plug-in of ours, and its options as texts.

    Raises:
        MRCError: options without a provider, or one that this module sets; a provider that is not here.
    """
    given = {name: str(value) for name, value in (options or {}).items()}
    available = onnxruntime.get_available_providers()
    if provider is None:
        if given:
            raise MRCError("provider_options were given without provider; name the provider they are for")
        provider = next(name for name in PREFERRED if name in available)
    for name, value in given.items():
        for start, remedy in REFUSED.items():
            if name.startswith(start) and value not in ("0", "False"):
                raise MRCError(f"provider_options has {name}; leave it out, {remedy}")
    if not given.get("device_id", "0").isdecimal():
        raise MRCError(f"provider_options has the device_id {given['device_id']!r}; give a number from 0")
    if provider == RTX and provider not in available and plug_in(RTX) is None:
        register_rtx()
    known = dict.fromkeys([*available, *(device.ep_name for device in onnxruntime.get_ep_devices())])
    if provider not in known:
        needs = NEEDS.get(
            provider,
            "install the package that brings it, or register it with onnxruntime.register_execution_provider_library",
        )
        raise MRCError(f"ONNX Runtime has no provider {provider!r} here, it has {', '.join(known)}; {needs}")
    if provider in (CUDA, TENSORRT):
        with redirect_stdout(sys.stderr):  # it prints what it misses
            onnxruntime.preload_dlls()
    return provider, given


def plug_in(provider: str) -> onnxruntime.OrtEpDevice | None:
    """The first device of a provider that is no part of this package of ONNX Runtime, but was registered."""
    if provider in onnxruntime.get_available_providers():
        return None
    return next((device for device in onnxruntime.get_ep_devices() if device.ep_name == provider), None)


def register_rtx() -> None:
    """Register TensorRT for RTX, which is a plug-in of any package of ONNX Runtime.

    Raises:
        MRCError: it is not installed, or its library cannot be loaded.
    """
    try:
        import onnxruntime_ep_nv_tensorrt_rtx as package

        onnxruntime.register_execution_provider_library(RTX, package.get_library_path())
    except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
        raise MRCError(f"{RTX} cannot be loaded ({reason(error)}); {NEEDS[RTX]}") from None


def device_of(provider: str) -> str:
    """ONNX Runtime's word for where this provider's values live."""
    if provider in (CUDA, TENSORRT):
        return "cuda"
    device = plug_in(provider)
    # A plug-in brings its GPU's memory to any package of ONNX Runtime, or takes values from the host
    nvidia = device is not None and device.device.vendor_id == onnxruntime.OrtDeviceVendorId.NVIDIA
    memory = device.memory_info(onnxruntime.OrtDeviceMemoryType.DEFAULT) if device and nvidia else None
    return "cpu" if memory is None else "cuda"


def chain(provider: str, options: dict[str, str], artifact: Artifact, profile: Profile | None) -> dict[str, dict]:
    """The providers of one graph with their options: each takes what those before it lack.

    float32 means IEEE products, which the CUDA provider does not take by itself.
    """
    cuda = {"use_tf32": "0"} if artifact.precision == "float32" else {}
    if provider == CUDA:
        return {CUDA: cuda | options, CPU: {}}
    if provider not in PREFIX:
        return {provider: options} | ({} if provider == CPU else {CPU: {}})
    own = profile_options(PREFIX[provider], profile) if profile else {}
    if provider == TENSORRT and artifact.precision in ("float16", "bfloat16"):
        own["trt_fp16_enable" if artifact.precision == "float16" else "trt_bf16_enable"] = "1"
    place = {"device_id": options["device_id"]} if "device_id" in options else {}
    between = {CUDA: cuda | place} if CUDA in onnxruntime.get_available_providers() else {}
    return {provider: own | options, **between, CPU: {}}


def profile_options(prefix: str, profile: Profile) -> dict[str, str]:
    """As the providers read them: `sample:1x8x32x32,branch:1`; a scalar dimension is none of ours."""
    return {
        f"{prefix}profile_{bound}_shapes": ",".join(
            f"{name}:{'x'.join(map(str, shapes[bound]))}" for name, shapes in profile.items()
        )
        for bound in ("min", "opt", "max")
    }


def open_session(
    name: str, graph: str | bytes, options: onnxruntime.SessionOptions, providers: dict[str, dict[str, str]]
) -> onnxruntime.InferenceSession:
    """A session of a file or of the content of one, on the first of `providers`; `name` is for messages.

    Raises:
        MRCError: the graph is refused, the provider could not be loaded, or computes little of the graph itself.
    """
    provider = next(iter(providers))
    options.log_severity_level = 3
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        if device := plug_in(provider):
            options.add_provider_for_devices([device], providers[provider])
            if CUDA in providers:
                options.add_provider(CUDA, providers[CUDA])
            session = onnxruntime.InferenceSession(graph, options, enable_fallback=0)
        else:
            listed = list(providers.items())
            session = onnxruntime.InferenceSession(graph, options, listed, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
        raise refused(name, provider, error) from None
    check_provider(session, provider, name)
    return session


def refused(name: str, provider: str, error: Exception) -> MRCError:
    words = next(iter(str(error).splitlines()), type(error).__name__)
    if memory_ran_out(error):
        return MRCError(f"there is not enough memory to open {name}; free some")
    if provider != CPU:
        reasons = "; ".join(filter(None, [words, missing_library(provider)]))
        needs = NEEDS.get(provider, "see what it needs")
        return MRCError(f"{provider} refuses {name}: {reasons}; {needs}, or give provider={CPU!r}")
    return MRCError(f"ONNX Runtime refuses {name}: {words}; export again, or in float32")


def check_provider(session: onnxruntime.InferenceSession, provider: str, name: str) -> None:
    """Refuse a session that runs without the provider that was asked for, or leaves real work to the CPU.

    Raises:
        MRCError: it does.
    """
    if provider == CPU:
        return
    remedy = f"{NEEDS.get(provider, 'see what it needs')}, or give provider={CPU!r}"
    if provider not in session.get_providers():
        raise MRCError(f"ONNX Runtime could not load {provider} for {name} ({why_lost(provider)}); {remedy}")
    computed: dict[str, Counter] = {}
    for part in session.get_provider_graph_assignment_info():
        computed.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
    if not computed.get(provider):
        raise MRCError(f"{provider} took no operator of {name}; {remedy}")
    left = sorted(COMPUTING & computed.get(CPU, Counter()).keys())
    if left and provider in NEEDS:  # others may be made to share a graph with the CPU
        raise MRCError(f"{provider} leaves {', '.join(left)} of {name} to the CPU; {remedy}")


def why_lost(provider: str) -> str:
    """What ONNX Runtime logs when it goes on without a provider."""
    if provider not in LIBRARIES:
        return "ONNX Runtime's log has the reason"
    return missing_library(provider) or "its library loads, so the GPU or its driver is missing: look at nvidia-smi"


def missing_library(provider: str) -> str:
    """What the system says when it loads the provider's library; empty if that works."""
    if provider in LIBRARIES:
        try:
            ctypes.CDLL(str(Path(onnxruntime.__file__).parent / "capi" / LIBRARIES[provider]))
        except OSError as error:
            return str(error)
    return ""
