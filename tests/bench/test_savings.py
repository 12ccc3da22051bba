import json

from mrc_edit.bench import savings


def test_every_saving_changes_nothing(engine, fused):
    for one in (engine, fused):
        rows = savings.time_savings(one, 64, 2)
        assert all(row["difference"] <= 1e-5 for row in rows), rows
        assert len(rows) == 6 and all(row["seconds"] > 0 for row in rows)


def test_one_command_gives_table_and_report(tiny, tiny_export, tmp_path, capsys):
    arguments = (tiny, tiny_export, "--size", 64, "--rounds", 1, "--json", tmp_path / "s.json")
    savings.run(savings.arguments().parse_args([*map(str, arguments)]))
    report = json.loads((tmp_path / "s.json").read_text())
    assert (report["variant"], report["size"]) == ("onnxruntime", 64)
    assert [row["ratio"] for row in report["rows"] if row["variant"].startswith("as it is")] == [1, 1]
    assert "no shared prefix" in capsys.readouterr().out
