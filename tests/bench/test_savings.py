from mrc_edit.bench.savings import markdown, measure


def test_every_saving_changes_nothing(engine, fused):
    for one in (engine, fused):
        rows = measure(one, 64, 2)
        assert all(row["difference"] <= 1e-5 for row in rows), rows
        assert len(rows) == 6 and all(row["seconds"] > 0 for row in rows)
    assert "no shared prefix" in markdown(rows)
