import csv
import io

from mrc_edit.bench.report import Column, csv_text, plain_table, table

ROWS = [{"name": "a", "time_ms": 1234.5678, "psnr_db": None}, {"name": "b", "time_ms": 2.0, "psnr_db": 40.25}]
COLUMNS = [
    Column("variant", "{name}"),
    Column("time and PSNR", "{time_ms:.0f} ms, {psnr_db:.1f} dB", missing="equal"),
    Column("seconds", "{time_ms:.2f} s", scale=1e-3),
]


def test_markdown_and_csv_show_the_same_rows():
    lines = table(COLUMNS, ROWS).markdown().splitlines()
    assert lines[2:] == ["| a | equal | 1.23 s |", "| b | 2 ms, 40.2 dB | 0.00 s |"]
    read = list(csv.DictReader(io.StringIO(csv_text(ROWS))))
    assert [row["name"] for row in read] == ["a", "b"]
    assert [float(row["time_ms"]) for row in read] == [1234.5678, 2.0]  # unrounded
    assert [row["psnr_db"] for row in read] == ["", "40.25"]


def test_a_plain_table_has_every_value():
    assert plain_table([{"kernel": "k", "registers": 123456, "error": 1.23456e-6}]).markdown().splitlines() == [
        "| kernel | registers | error |", "| --- | --- | --- |", "| k | 123456 | 1.23e-06 |",
    ]  # fmt: skip
