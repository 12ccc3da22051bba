import json

import pytest

from mrc_edit.bench.slowdown import check_slowdown, read_earlier, slowdowns
from mrc_edit.core.errors import MRCError

SETTINGS = {"size": 64, "steps": 2, "rounds": 3}


def report(seconds, **settings):
    """A report of variants with these seconds a step; an edit takes ten times as long."""
    first = next(iter(seconds.values()))
    return {
        "settings": SETTINGS | settings,
        "baseline": next(iter(seconds)),
        "variants": {
            name: {
                "seconds": {"step": time, "edit": 10 * time},
                "step_speedup": {"median": first / time},
                "edit_speedup": {"median": first / time},
            }
            for name, time in seconds.items()
        },
    }


def test_several_variants_are_compared_by_their_ratio():
    earlier, now = report({"eager": 4, "openvino": 1}), report({"eager": 8, "openvino": 3})
    # the machine is half as fast; of the threefold time a factor of 1.5 is left
    assert slowdowns(now, earlier) == {"openvino": {"step": pytest.approx(1.5), "edit": pytest.approx(1.5)}}


def test_one_variant_is_compared_by_its_seconds():
    earlier, now = report({"eager": 4, "openvino": 1}), report({"openvino": 1.2})
    assert slowdowns(now, earlier) == {"openvino": {"step": pytest.approx(1.2), "edit": pytest.approx(1.2)}}


def test_only_a_slowdown_beyond_the_tolerance_stops(capsys):
    earlier = report({"eager": 4, "openvino": 1})
    check_slowdown(report({"eager": 4, "openvino": 1.09}), earlier, 1.1)
    check_slowdown(report({"eager": 4, "openvino": 0.2}), earlier, 1.1)
    with pytest.raises(SystemExit, match=r"slower .* openvino step 1\.11×"):
        check_slowdown(report({"eager": 4, "openvino": 1.11}), earlier, 1.1)
    assert "openvino: step 1.09× the earlier time, edit 1.09×" in capsys.readouterr().out


def test_a_report_with_other_rounds_can_be_compared(tmp_path):
    path = tmp_path / "earlier.json"
    earlier = report({"eager": 4, "openvino": 1})
    path.write_text(json.dumps(earlier))
    assert read_earlier(path, ["eager", "openvino"], SETTINGS | {"rounds": 9}) == earlier
    assert read_earlier(path, ["openvino"], SETTINGS) == earlier


@pytest.mark.parametrize(
    ("content", "names", "settings", "message"),
    [
        (None, ["eager"], SETTINGS, "is missing; give --check"),
        ("{", ["eager"], SETTINGS, "cannot be read"),
        ("{}", ["eager"], SETTINGS, "no report"),
        (report({"eager": 1}), ["eager", "torch"], SETTINGS, "has no torch"),
        (report({"eager": 1}), ["eager"], SETTINGS | {"size": 128}, "size is 128 and was 64"),
        (report({"eager": 1}), ["eager"], SETTINGS | {"threads": 2}, "threads is 2 and was None"),
        (report({"eager": 1, "torch": 1}), ["torch", "eager"], SETTINGS, "first variant is torch and was eager"),
    ],
)
def test_what_cannot_be_compared(tmp_path, content, names, settings, message):
    path = tmp_path / "earlier.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(MRCError, match=message):
        read_earlier(path, names, settings)
