"""`mrc-serve`: edits over HTTP."""

import argparse
import ipaddress
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.cluster import prepare_ray
from ..core.console import command_parser
from ..core.errors import MRCError, run_command
from ..core.precision import PRECISIONS, TF32
from ..engine.finishing import add_finishing_flags, open_finishing
from ..engine.tiers import TIERS

if TYPE_CHECKING:
    from .service import Model, Serving

PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def arguments() -> argparse.ArgumentParser:
    parser = command_parser(
        "mrc-serve",
        "Serve a model over HTTP: OpenAI's image edits, and a page at /.",
        epilog="Keys come from MRC_API_KEYS (separated by commas), or from the file that MRC_API_KEYS_FILE names (one "
        "a line). Without keys only this machine is answered.",
    )
    parser.add_argument("model", help="checkpoint, export folder, mini: the small one inside, or OWNER/NAME of the hub")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free (default: 8000)")
    runtime = parser.add_argument_group("runtime")
    runtime.add_argument("--backend", default="auto", metavar="NAME", help="as for mrc-edit (default: auto)")
    runtime.add_argument(
        "--precision", choices=(*PRECISIONS, TF32, "int8"), help="as for mrc-edit (default: the backend's choice)"
    )
    runtime.add_argument(
        "--tier", choices=list(TIERS), default="exact", help="of requests that name none (default: exact)"
    )
    runtime.add_argument(
        "--provider",
        metavar="NAME",
        help="ONNX Runtime's execution provider (default: CUDA where it has that, else the CPU)",
    )
    edits = parser.add_argument_group("edits")
    edits.add_argument(
        "--metadata",
        action="store_true",
        help="write the parameters into each PNG, instruction and seed too, as mrc-edit does (default: no)",
    )
    add_finishing_flags(edits)
    machines = parser.add_argument_group("many machines (docs/ray.md)")
    machines.add_argument(
        "--ray",
        action="store_true",
        help="edit in replicas on Ray: on the cluster of RAY_ADDRESS, or on a new one of this machine (default: off)",
    )
    machines.add_argument(
        "--replicas", metavar="N", help="of the model with --ray; MIN-MAX for as many as are needed (default: 1)"
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-batch", type=int, default=8, help="images edited together, at most (default: 8)")
    limits.add_argument("--max-waiting", type=int, default=64, help="edits that wait, at most (default: 64)")
    limits.add_argument("--max-bytes", type=int, default=20_000_000, help="of a request (default: 20000000)")
    limits.add_argument("--max-pixels", type=int, default=1024 * 1024, help="of an edit (default: 1048576)")
    limits.add_argument(
        "--read-timeout", type=float, default=30, help="seconds in which a request must have come (default: 30)"
    )
    limits.add_argument(
        "--timeout", type=float, default=600, help="seconds of an edit, with those it waits (default: 600)"
    )
    limits.add_argument(
        "--drain", type=float, default=30, help="seconds for what runs when the server is stopped (default: 30)"
    )
    return parser


def check_installed(packages: Iterable[str], extra: str) -> None:
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise MRCError(f"mrc-serve needs {', '.join(missing)}: pip install 'mrc-edit[{extra}]'")


def check_options(args: argparse.Namespace) -> None:
    for name in ("max_batch", "max_waiting", "max_bytes", "max_pixels"):
        if (value := getattr(args, name)) < 1:
            raise MRCError(f"--{name.replace('_', '-')} is {value}; give a whole number from 1 up")
    for name, least in (("read_timeout", 0.1), ("timeout", 0.1), ("drain", 0.0)):
        if not least <= (seconds := getattr(args, name)) <= 86_400:
            raise MRCError(f"--{name.replace('_', '-')} is {seconds:g}; give seconds, {least:g} to 86400")
    if not 0 <= args.port <= 65_535:
        raise MRCError(f"--port is {args.port}; give 0 to 65535")
    if args.replicas is not None and not args.ray:
        raise MRCError(f"--replicas is {args.replicas}, and replicas are on Ray; give --ray too")
    replicas_of(args)


def replica_range(text: str) -> tuple[int, int]:
    """`2` or `1-4` as the fewest and the most replicas.

    Raises:
        MRCError: something else.
    """
    fewest, dash, most = text.partition("-")
    if not fewest.isdecimal() or not (most.isdecimal() or not dash):
        raise MRCError(f"--replicas is {text!r}; give a number, or MIN-MAX")
    numbers = int(fewest), int(most or fewest)
    if not 1 <= numbers[0] <= numbers[1]:
        raise MRCError(f"--replicas is {text!r}; give 1 or more, the fewest first")
    return numbers


def replicas_of(args: argparse.Namespace) -> tuple[int, int]:
    return replica_range("1" if args.replicas is None else args.replicas)


def check_host(host: str, has_keys: bool) -> None:
    """Refuse to serve strangers without keys."""
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local and not has_keys:
        raise MRCError(f"--host is {host}, which others can reach; set MRC_API_KEYS, or serve 127.0.0.1")


@contextmanager
def opened(args: argparse.Namespace) -> "Iterator[tuple[Model, Serving]]":
    """The model and what takes its edits: in this process, or on Ray."""
    from ..engine import AsyncEngine, Engine
    from ..engine.shipped import shipped
    from .service import describe

    path = Path(args.model)
    is_folder = path.exists() and shipped(args.model, args.backend) == path
    folder = str(path.resolve()) if is_folder else args.model  # a replica has another working directory
    source = {"folder": folder, "backend": args.backend, "precision": args.precision, "tier": args.tier}
    source |= {"provider": args.provider} if args.provider else {}
    name = path.resolve().name
    if not args.ray:
        engine = Engine.from_pretrained(**source)
        yield describe(engine, name, args.tier, args.metadata), AsyncEngine(engine, args.max_batch, args.max_waiting)
        return
    check_installed(("ray", "aiohttp"), "ray,serve")
    prepare_ray()
    from .ray import Deployed, deployed

    wanted = Deployed(name, source, replicas_of(args), args.max_batch, args.drain, args.metadata)
    with deployed(wanted, args.max_waiting) as model_and_fleet:
        yield model_and_fleet


def serve(args: argparse.Namespace) -> None:
    check_options(args)
    check_installed(PACKAGES, "serve")
    from .metrics import Metrics
    from .server import bound, run
    from .service import Options, Service, read_keys

    finishing = open_finishing(args)
    keys = read_keys()
    check_host(args.host, bool(keys))
    limits = (args.max_bytes, args.max_pixels, args.read_timeout, args.timeout, args.drain)
    with bound(args.host, args.port) as sockets, opened(args) as (model, serving):
        service = Service(model, serving, Options(*limits, finishing), keys, Metrics(serving.load))
        run(service, sockets)


def main() -> None:
    args = arguments().parse_args()
    sys.exit(run_command(lambda: serve(args)))


if __name__ == "__main__":
    main()
