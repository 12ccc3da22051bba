"""results.json of a Real-Edit run, which may be somebody else's: checked before a page is made of it."""

from collections.abc import Collection
from pathlib import Path

from ...core.errors import MRCError
from ...core.files import read_json
from ...core.kinds import KINDS
from ...core.paths import file_inside
from ...core.reward import PERSPECTIVES

REMEDY = "run --real-edit again with this --out"
PLACES = {"source": "sources", "edit": "edits"}  # folders of an item's pictures
OPTIONAL_TEXT, OPTIONAL_BOOL = (str, type(None)), (bool, type(None))


def read_run(folder: Path, metrics: Collection[str] | None = None) -> dict:
    """The content of results.json.

    Every item has a name of its own, an instruction, and pictures that are PNG files in `sources/` and `edits/`; its
    reward, if there is one, has scores from 0 to 5 or None.

    Args:
        metrics: require also what a comparison needs: edit type, verdicts, texts, and these proxies.

    Raises:
        MRCError: no finished run, or one of another form.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise MRCError(f"{path} is missing: {folder} has no results; give the --out of a finished --real-edit run")
    results = read_json(path, f"it is damaged; {REMEDY}")
    run, items = results.get("run"), results.get("items")
    if not isinstance(run, dict) or not isinstance(run.get("data"), str) or not isinstance(items, list) or not items:
        raise MRCError(f"{path} is damaged: it has no run with data, or no items; {REMEDY}")
    if not isinstance(results.setdefault("judge", None), dict | None):
        raise MRCError(f"{path} is damaged: its judge is no object; {REMEDY}")
    for number, item in enumerate(items):
        try:
            check_item(item, folder)
            if metrics is not None:
                check_comparable(item, metrics, bool(results["judge"]))
        except MRCError as error:
            raise MRCError(f"{path} is damaged: item {number}: {error}; {REMEDY}") from None
    if len({item["name"] for item in items}) < len(items):
        raise MRCError(f"{path} is damaged: two items have one name; {REMEDY}")
    return results


def check_item(item: object, folder: Path) -> None:
    """Name, instruction, pictures and scores."""
    if not isinstance(item, dict):
        raise MRCError("it is no object")
    for key in ("name", "instruction"):
        check_text(item.get(key), key)
    for key, place in PLACES.items():
        file_inside(folder, item.get(key))
        parts = item[key].split("/")
        if len(parts) != 2 or parts[0] != place or not parts[1].endswith(".png"):
            raise MRCError(f"its {key} is no PNG file in {place}/")
    reward = item.get("reward")
    if reward is not None and not all(is_score(score) for score in three(reward, "scores")):
        raise MRCError("its scores are not from 0 to 5")


def check_comparable(item: dict, metrics: Collection[str], judged: bool) -> None:
    """Edit type, image, the rest of the reward, and proxies."""
    if item.get("type") not in KINDS:
        raise MRCError(f"its type is none of {', '.join(KINDS)}")
    check_text(item.get("image"), "image")
    reward, proxies = item.get("reward"), item.get("proxies")
    if judged and reward is None:
        raise MRCError("it has no reward")
    if reward is not None:
        kinds = {"verdicts": OPTIONAL_BOOL, "texts": OPTIONAL_TEXT, "failures": OPTIONAL_TEXT}
        for key, types in kinds.items():
            if not all(isinstance(value, types) for value in three(reward, key)):
                raise MRCError(f"its {key} are of another type")
        if any((a is None) != (b is None) for a, b in zip(reward["scores"], reward["verdicts"], strict=True)):
            raise MRCError("it has a score without a verdict, or the other way round")
    if not isinstance(proxies, dict) or not all(is_proxy(proxies.get(name, "")) for name in metrics):
        raise MRCError(f"its proxies are not numbers for {', '.join(metrics)}")


def is_proxy(value: object) -> bool:
    return value is None or is_number(value, -1e9, 1e9)


def is_score(value: object) -> bool:
    """From 0 to 5, or None where the judge gave none."""
    return value is None or is_number(value, 0, 5)


def is_number(value: object, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def check_text(value: object, key: str) -> None:
    if not isinstance(value, str):
        raise MRCError(f"its {key} is no text")


def three(reward: object, key: str) -> list:
    """The values of a reward, one a perspective."""
    values = reward.get(key) if isinstance(reward, dict) else None
    if not isinstance(values, list) or len(values) != len(PERSPECTIVES):
        raise MRCError(f"its reward has not three {key}")
    return values
