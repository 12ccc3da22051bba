import numpy as np
import pytest

from mrc_edit.bench.report import table
from mrc_edit.bench.tiers import COLUMNS, VARIANTS, fidelity, rows


def test_equal_pictures_lose_nothing():
    images = np.random.RandomState(0).randint(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    assert fidelity(images, images) == {"psnr_db": 100.0, "psnr_least_db": 100.0, "ssim": 1.0}


def test_psnr_by_hand():
    truth = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    images = truth.copy()
    images[0] = 51  # a fifth of the range: 10·log10(25) dB
    assert fidelity(images, truth)["psnr_least_db"] == pytest.approx(13.98, abs=0.01)


def test_the_first_row_is_exact_and_the_table_says_so():
    assert VARIANTS[0][1:] == ("float32", "exact")
    entry = {"psnr_db": 40.0, "psnr_least_db": 30.0, "ssim": 0.9, "passes": dict.fromkeys(
        ("following", "preserving", "quality"), 50.0)}  # fmt: skip
    first, second = table(COLUMNS, rows({"first": entry, "second": entry})).markdown().splitlines()[2:]
    assert first == "| first | the reference |  |  | 50.0 | 50.0 | 50.0 |"
    assert second == "| second | 40.0 dB | 30.0 dB | 0.900 | 50.0 | 50.0 | 50.0 |"
