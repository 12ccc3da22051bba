import io
import json

import pytest
from PIL import Image

from mrc_edit.train.rewards.command import main
from mrc_edit.train.rewards.stats import frequent_words


def entry(scores, texts):
    return [{"Score": score, "Negative Prompt": text} for score, text in zip(scores, texts, strict=True)]


@pytest.fixture
def rewards(tmp_path):
    path = tmp_path / "RewardEdit.json"
    entries = [
        entry((5, 3, 0), ("None", "the sky changed", "blurred hands, blurred face")),
        entry((1, 3, 4.5), ("the dog stayed", "The dog's sky", "none.")),
        entry((1, 5, 5), ("nothing changed", "None", "")),
    ]
    path.write_text(json.dumps({f"{i:07d}": value for i, value in enumerate(entries)}))
    return path


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code, capsys.readouterr()


def test_histograms_and_words(rewards, tmp_path, capsys):
    code, captured = run(capsys, "stats", rewards, "--json", "--plot", tmp_path / "x.png")
    assert code == 0
    stats = json.loads(captured.out)
    table = stats["perspectives"]
    assert stats["triplets"] == 3 and stats["left_out"] == 0
    assert [row["histogram"] for row in table.values()] == [[0, 2, 0, 0, 0, 1], [0, 0, 0, 2, 0, 1], [1, 0, 0, 0, 1, 1]]
    assert [row["mean"] for row in table.values()] == pytest.approx([7 / 3, 11 / 3, 9.5 / 3], abs=1e-3)
    assert table["preserving"]["words"] == [["sky", 2], ["changed", 1], ["dog", 1]]
    assert table["quality"]["words"] == [["blurred", 1], ["face", 1], ["hands", 1]], "a text counts once"
    image = Image.open(io.BytesIO((tmp_path / "x.png").read_bytes()))
    assert image.format == "PNG" and len(image.convert("L").getcolors()) > 2


def test_what_was_left_out_is_told(rewards, capsys):
    rewards.with_name("report.json").write_text(json.dumps({"incomplete": 2, "unreadable": 1}))
    code, captured = run(capsys, "stats", rewards.parent)
    assert code == 0 and "3 triplets, 3 left out" in captured.out
    assert rewards.with_name("stats.png").is_file()


def test_words_that_name_nothing_do_not_count():
    assert frequent_words(["the a of it was", "None", "None.", ""]) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [("{}", "no rewards"), ("[", "cannot be read"), ('{"a": [1]}', "its reward is"),
     (json.dumps({"a": entry((1, 2, 9), ("", "", ""))}), "score for quality is 9")],
)  # fmt: skip
def test_what_is_no_reward_data(rewards, capsys, text, message):
    rewards.write_text(text)
    code, captured = run(capsys, "stats", rewards)
    assert code == 2 and message in captured.err


def test_a_command_is_needed(capsys):
    code, captured = run(capsys)
    assert code == 2 and "build" in captured.err
    code, captured = run(capsys, "build", "--help")
    assert code == 0 and "--max-tokens" in captured.out


@pytest.mark.parametrize("report", ["{", "{}", "[]", "[" * 100_000, '{"incomplete": "2", "unreadable": 1}',
                                    '{"incomplete": -2, "unreadable": true}'])  # fmt: skip
def test_a_damaged_report_is_named(rewards, capsys, report):
    rewards.with_name("report.json").write_text(report)
    code, captured = run(capsys, "stats", rewards)
    assert code == 2 and "report.json" in captured.err


@pytest.mark.parametrize(
    "entry",
    [None, 5, [], entry((1, 2, None), ("", "", "")), entry((1, 2, 3), ("", "", 5)), entry((1, 2, 10**400), "abc")],
)
def test_entries_of_another_form_are_named(rewards, capsys, entry):
    rewards.write_text(json.dumps({"0000007": entry}))
    code, captured = run(capsys, "stats", rewards)
    assert code == 2 and "sample 0000007" in captured.err
