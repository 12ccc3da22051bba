import math

import numpy as np
import pytest

from mrc_edit.core.fidelity import psnr, relative_error


def test_relative_error_by_hand():
    assert relative_error(np.array([3.0, 5.0]), np.array([3.0, 4.0])) == pytest.approx(1 / 5)
    assert relative_error(np.ones(3), np.ones(3)) == 0


def test_psnr_by_hand():
    zero = np.zeros((4, 4))
    assert psnr(zero + 0.1, zero) == pytest.approx(20)
    assert psnr(zero, zero) == math.inf


def test_psnr_of_uint8_does_not_wrap():
    zero = np.zeros((4, 4, 3), np.uint8)
    assert psnr(zero, zero + np.uint8(51), peak=255) == pytest.approx(10 * math.log10(25))
