"""A checkpoint folder becomes an export folder, whole and validated, or not at all."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from ..core.errors import MRCError
from ..core.files import anything, replace_folder
from ..core.memory import return_freed_memory
from ..core.precision import PRECISIONS
from ..engine.graphs import EACH_STEP, GRAPHS
from ..engine.manifest import Manifest
from ..engine.models import layout_folders, model_folder
from . import stages
from .calibration import check_int8
from .options import OPSET, OPSETS
from .stages import FALLBACK, Options, Stage, Work
from .target import check_export, check_target
from .tensorrt import Sizes, check_sizes, tools_for


def export(
    checkpoint_folder: str | Path,
    out: str | Path,
    *,
    dtype: str = "float32",
    opset: int = OPSET,
    trt: bool = False,
    trt_targets: Sequence[str] | None = None,
    int8: str | Path | None = None,
    precision_report: bool = False,
    sizes: Sizes = (None, None, None),
    max_batch: int = 1,
    lora: Mapping[str | Path, float] | None = None,
    embeddings: Mapping[str, str | Path] | None = None,
    overwrite: bool = False,
    variant: str | None = None,
    vae: str | Path | None = None,
    base: str | Path | None = None,
) -> Manifest:
    """Export all graphs, check them against eager, and with `trt` build their engines.

    Args:
        checkpoint_folder: MRC or plain InstructPix2Pix checkpoint; a name as of `Engine.from_pretrained` may be given.
        out: the export folder; an old one stays until the new one is whole.
        dtype: float32, float16 or bfloat16, inside the graphs; all inputs and outputs are float32. The conditioner,
            which runs once an edit, stays in float32. A float16 export also holds a float32 VAE decoder, for images
            that overflow.
        opset: 18 to 24. Attention is one node from 23 on, group normalization from 21 on.
        int8: folder of images like those to be edited; the step graphs are also written in int8, calibrated on
            edits of these (`export.calibration`), for `precision="int8"`.
        trt_targets: GPUs of the engines, such as "sm86"; by default all but sm75 that TensorRT for RTX has, or with
            data-centre TensorRT the one in this machine.
        precision_report: measure what each format costs on edits of the images of `int8`, or else of the package's
            photograph (`export.precision`), and keep the layers in float32 that should stay so with this `dtype`.
        sizes: least, best and greatest side in pixels of the engines; None for half of the model's resolution, the
            resolution, or half as much again. They are fastest for one square image of the best.
        max_batch: images a pass of the engines.
        lora: scales by LoRA file, merged into the weights (docs/lora.md); the manifest records them.
        embeddings: files of textual inversion by token, added to tokenizer and text encoder; recorded too.
        overwrite: replace `out` whatever it holds; otherwise only an export whose manifest lists all its files.
        variant, vae, base: of the checkpoint, as in `load_checkpoint`.

    Raises:
        MRCError: an unusable checkpoint or argument, a graph that differs
            from eager, no TensorRT, an `out` that is something else or that another export is writing.
    """
    out = Path(out)
    check_precision(dtype, int8)
    check_opset(opset)
    check_sizes(sizes, max_batch)
    source = model_folder(checkpoint_folder, "eager", options={"variant": variant})
    check_target(source, out)
    if int8 is not None:
        check_int8(Path(int8))
    if trt_targets is not None and not trt:
        raise MRCError("trt_targets were given without trt; add it (--trt), or leave them out")
    tools = tools_for(trt_targets) if trt else None
    pictures = None if int8 is None else Path(int8)
    given = {"variant": variant, "vae": vae, "base": base}
    layout = layout_folders({name: value for name, value in given.items() if value is not None})
    options = Options(
        source, out, dtype, pictures, tools, sizes, max_batch, precision_report, opset, layout, lora, embeddings
    )
    with replace_folder(out, anything if overwrite else check_export, wait=False) as folder:
        work = Work(options, folder)
        with tqdm(stages_of(options), desc="export", unit="stage", disable=None) as bar:
            for name, stage in bar:
                bar.set_description(name)
                try:
                    stage(work)
                except MRCError as error:  # name the user's folder
                    raise MRCError(str(error).replace(str(folder), str(out))) from None
                return_freed_memory()  # or it would come on top of what the next stage takes
    assert work.manifest is not None
    return work.manifest


def stages_of(options: Options) -> list[tuple[str, Stage]]:
    """The stages of an export, in order."""

    def tracing(graph: str) -> Stage:
        return lambda work: stages.trace_graph(work, graph)

    def building(graph: str, precision: str) -> Stage:
        return lambda work: stages.add_engine(work, graph, precision)

    return [
        ("load", stages.load),
        ("eager reference", stages.reference),
        *([("precision report", stages.add_precision_report)] if options.precision_report else []),
        *([(FALLBACK, stages.trace_fallback)] if options.dtype == "float16" else []),
        *((graph, tracing(graph)) for graph in GRAPHS),
        ("settings", stages.write_settings),
        ("validate", stages.add_differences),
        *([("int8", stages.add_int8)] if options.int8 else []),
        *((f"TensorRT {name}", building(*name.split())) for name in engines(options)),
        *([("TensorRT report", stages.report_engines)] if options.tensorrt else []),
        ("write manifest", stages.write_manifest),
    ]


def engines(options: Options) -> list[str]:
    """Graph and precision of every TensorRT engine to build."""
    own = [f"{name} {options.dtype if graph.half else 'float32'}" for name, graph in GRAPHS.items()]
    int8 = [f"{name} int8" for name in EACH_STEP if options.int8]
    wide = ["vae_decoder float32"] if options.dtype == "float16" else []
    return [*own, *int8, *wide] if options.tensorrt else []


def check_precision(dtype: str, int8: str | Path | None) -> None:
    if dtype not in PRECISIONS:
        raise MRCError(f"dtype is {dtype!r}; choose one of {', '.join(PRECISIONS)}")
    if int8 is not None and dtype != "float32":
        raise MRCError(f"int8 graphs are made from float32 ones and dtype is {dtype!r}; leave out one of the two")


def check_opset(opset: int) -> None:
    if opset not in OPSETS:
        raise MRCError(f"opset is {opset}; choose {OPSETS[0]} to {OPSETS[-1]}")
