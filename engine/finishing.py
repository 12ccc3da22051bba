"""What happens to every edit between the engine and whoever gets it, by the command and by the server alike."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from .provenance import Sign, open_signer
from .safety import Score, check_safe, open_safety


@dataclass(frozen=True)
class Finishing:
    """Nothing of it unless it is asked for.

    Attributes:
        score: how unsafe an edit is (`engine.safety`).
        sign: signs its file (`engine.provenance`).
    """

    score: Score | None = None
    sign: Sign | None = None


AS_IT_IS = Finishing()


def add_finishing_flags(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--safety",
        action="store_true",
        help="refuse edits that a small network of 2016 takes for pornography; it sees nothing else, neither violence "
        "nor faces nor text (docs/provenance.md; extra safety, not beside gpu) (default: no)",
    )
    parser.add_argument(
        "--provenance",
        nargs=2,
        metavar=("CERT", "KEY"),
        help="sign PNG, JPEG and WebP with this chain of certificates and this key, PEM files: Content Credentials "
        "(C2PA) that name the source and a trained model (docs/provenance.md; extra provenance) (default: no)",
    )


def open_finishing(args: argparse.Namespace) -> Finishing:
    """What the flags ask for.

    Raises:
        MRCError: a package that is missing, or certificate and key that cannot sign.
    """
    score = open_safety() if args.safety else None
    return Finishing(score, open_signer(*args.provenance) if args.provenance else None)


def finish(
    image: Image.Image,
    edit_format: str,
    encode: Callable[[], bytes],
    source: Callable[[], bytes] | None,
    finishing: Finishing,
) -> bytes:
    """The file of an edit, as it leaves.

    Args:
        edit_format: Pillow's name.
        encode: gives the file as it would be.
        source: gives the file of its source; None for what is no edit yet, such as a preview, which nothing signs.

    Raises:
        MRCError: it cannot be encoded or signed; `UnsafeEdit` is a kind of it.
    """
    if finishing.score is not None:
        check_safe(image, finishing.score)
    content = encode()
    return content if finishing.sign is None or source is None else finishing.sign(content, edit_format, source())
