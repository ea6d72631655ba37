"""The noise of a decoding."""

from __future__ import annotations

import numpy as np

from mlx_vits.synthesis.noise import draw_noise


def test_a_frame_has_its_noise_whatever_is_drawn_with_it() -> None:
    whole = np.array(draw_noise(4, 0, 300, seed=5))
    assert whole.shape == (1, 4, 300)
    for first, frames in ((0, 1), (63, 2), (64, 64), (100, 200)):
        part = np.array(draw_noise(4, first, frames, seed=5))
        assert np.array_equal(part, whole[:, :, first : first + frames])


def test_it_is_standard_normal_and_its_seed_s_own() -> None:
    one, other = (np.array(draw_noise(192, 0, 500, seed=seed)).ravel() for seed in (0, 1))
    assert abs(one.mean()) < 0.02
    assert abs(one.std() - 1) < 0.02
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.02
    blocks = one.reshape(192, 500)
    assert abs(np.corrcoef(blocks[:, :64].ravel(), blocks[:, 64:128].ravel())[0, 1]) < 0.05
