"""INT8 activations against numpy, element by element."""

import numpy as np
import pytest
import torch

from mote.ternary.activations import quantize_activation, quantize_activation_grouped


def reference(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    peak = np.maximum(np.abs(x).max(-1), np.float32(1e-5))
    scaled = x * (np.float32(127) / peak)[..., None]
    return np.clip(np.rint(scaled), -128, 127).astype(np.int8), peak / np.float32(127)


@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (7, 33), (2, 3, 17), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_integers_and_scales_are_those_of_numpy(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 5).to(dtype)
    x_q, s = quantize_activation(x)
    expected_q, expected_s = reference(x.float().numpy())
    assert np.array_equal(x_q.numpy(), expected_q)
    assert np.array_equal(s.numpy(), expected_s)


def test_largest_magnitude_becomes_127_and_halves_go_to_even() -> None:
    x_q, s = quantize_activation(torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -127.0]]))
    assert x_q.tolist() == [[127, 0, 2, 2, 0, -2, -127]]
    assert s.item() == 1.0


def test_zero_token_uses_the_floor() -> None:
    x_q, s = quantize_activation(torch.zeros(2, 4))
    assert not x_q.any()
    assert s.tolist() == [float(np.float32(1e-5) / np.float32(127))] * 2


def test_a_bad_token_shows_in_its_scale_only() -> None:
    x = torch.ones(3, 4)
    x[1, 2] = float("nan")
    _, s = quantize_activation(x)
    assert torch.isfinite(s).tolist() == [True, False, True]


@pytest.mark.parametrize(("cols", "group"), [(1, 32), (32, 32), (33, 32), (100, 8), (128, 64)])
def test_groups_are_quantised_each_by_itself(cols: int, group: int) -> None:
    x = torch.randn(3, 2, cols, generator=torch.Generator().manual_seed(4)) * 5
    x_q, s = quantize_activation_grouped(x, group)
    assert x_q.shape == x.shape
    assert s.shape == (3, 2, -(-cols // group))
    for g, start in enumerate(range(0, cols, group)):
        expected_q, expected_s = reference(x[..., start : start + group].numpy())
        assert np.array_equal(x_q[..., start : start + group].numpy(), expected_q)
        assert np.array_equal(s[..., g].numpy(), expected_s)


def test_a_bad_value_shows_in_its_group_only() -> None:
    x = torch.ones(2, 96)
    x[1, 40] = float("nan")
    assert torch.isfinite(quantize_activation_grouped(x, 32)[1]).tolist() == [[True] * 3, [True, False, True]]
