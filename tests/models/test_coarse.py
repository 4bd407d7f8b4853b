"""The coarse search against the dual softmax (Eq. 2) written out in double precision."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from edm_hloc.models.coarse import (
    best_columns,
    confident_columns,
    distinctness,
    similarity,
)


@pytest.mark.parametrize("block_bytes", [1, 4 * 37 * 5, 1 << 30])
@pytest.mark.parametrize("magnitude", [0.1, 3.0, 300.0])
def test_best_columns_equals_the_dual_softmax(block_bytes: int, magnitude: float) -> None:
    """Against Eq. 2 written out in double precision; 300 would overflow an unshifted exp."""
    torch.manual_seed(6)
    a, b = torch.randn(2, 53, 16) * magnitude, torch.randn(2, 37, 16) * magnitude
    s = a.double() @ b.double().transpose(1, 2) / (16 * 0.1)
    expected = (s.log_softmax(dim=1) + s.log_softmax(dim=2)).max(dim=2)
    value, column = best_columns(a, b, 0.1, block_bytes)
    assert torch.isfinite(value).all()
    rounding = 1e-6 * s.abs().max().item()  # of fp32 similarities of this size
    visible = expected.values > -80
    torch.testing.assert_close(
        value.double().log()[visible], expected.values[visible], atol=1e-4 + 4 * rounding, rtol=0
    )
    chosen = (s.log_softmax(dim=1) + s.log_softmax(dim=2)).gather(2, column[..., None])[..., 0]
    torch.testing.assert_close(chosen, expected.values, atol=1e-4 + 4 * rounding, rtol=0)
    torch.testing.assert_close(similarity(a, b, 0.1).double(), s, atol=1e-5 + rounding, rtol=0)


@pytest.mark.parametrize("block_bytes", [1, 4 * 2 * 37 * 7, 1 << 30])
@pytest.mark.parametrize("threshold", [0.0, 0.005, 0.02, 0.2, 0.6, 0.999999])
@pytest.mark.parametrize("magnitude", [0.1, 1.0, 1.5, 3.0, 300.0])
def test_confident_columns(magnitude: float, threshold: float, block_bytes: int) -> None:
    """Against Eq. 2 in double precision; at 3 and 300 the sums do not fit one common scale."""
    torch.manual_seed(9)
    a, b = torch.randn(2, 53, 16) * magnitude, torch.randn(2, 37, 16) * magnitude
    b[:, :20] = a[:, 10:30] + 0.1 * magnitude * torch.randn(2, 20, 16)  # something to be found
    s = a.double() @ b.double().transpose(1, 2) / (16 * 0.1)
    expected, best = (s.log_softmax(dim=1) + s.log_softmax(dim=2)).exp().max(dim=2)
    value, column = confident_columns(a, b, 0.1, threshold, block_bytes)
    rounding = 1e-5 + 1e-5 * s.abs().max().item()
    unclear = (expected - threshold).abs() < rounding
    above = (expected > threshold) & ~unclear
    assert (value > threshold)[~unclear].equal(above[~unclear])
    torch.testing.assert_close(value[above].double(), expected[above], atol=rounding, rtol=rounding)
    surely = above & (expected > 0.51) if magnitude > 100 else above  # ties at large magnitudes
    assert torch.equal(column[surely], best[surely])
    if magnitude in (1.5, 3.0) and threshold < 0.7:
        assert above.any()


def test_confident_columns_are_the_same_on_any_number_of_cores() -> None:
    torch.manual_seed(3)
    a = torch.randn(2, 61, 16)
    b = a[:, torch.randperm(61)[:45]] + 0.1 * torch.randn(2, 45, 16)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(confident_columns(a, b, 0.1, 0.05, block_bytes=4 * 2 * 45 * 7))
            assert torch.get_num_threads() == threads
            with ThreadPoolExecutor(1) as pool:  # started after the search
                assert pool.submit(torch.get_num_threads).result() == threads
    finally:
        torch.set_num_threads(before)
    assert (found[0][0] > 0).sum() > 40
    for value, column in found[1:]:
        torch.testing.assert_close(value, found[0][0], atol=1e-6, rtol=1e-6)
        assert torch.equal(column, found[0][1])


def test_confident_columns_of_equal_columns() -> None:
    """Two equal columns share a row's probability: either may be given, its value is exact."""
    a = torch.eye(4)[None] * 6
    b = torch.cat([a, a[:, :1]], dim=1)
    value, column = confident_columns(a, b, 0.1, 0.1)
    s = (a @ b.mT / (4 * 0.1)).double()
    expected = (s.log_softmax(dim=1) + s.log_softmax(dim=2)).exp()
    torch.testing.assert_close(value.double(), expected.max(dim=2).values, atol=1e-5, rtol=1e-5)
    assert column[0, 0].item() in (0, 4)
    assert column[0, 1:].tolist() == [1, 2, 3]


def test_distinctness_compares_a_cell_with_all_that_are_not_beside_it() -> None:
    """Against the whole matrix in double precision, on a grid with odd sides."""
    torch.manual_seed(4)
    rows, columns = 11, 17
    a, b = torch.randn(2, rows * columns, 16)
    s = a.double() @ b.double().T / (16 * 0.1)
    expected = torch.empty(rows, columns, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            of_cell = s[row * columns + column].view(rows, columns).clone()
            around = (slice(max(0, row - 3), row + 4), slice(max(0, column - 3), column + 4))
            near = of_cell[around].max()
            of_cell[around] = -torch.inf
            expected[row, column] = near - of_cell.max()
    for step in (1, 2, 3):
        found = distinctness(a, b, 0.1, (rows, columns), step)
        torch.testing.assert_close(found.double(), expected[::step, ::step], atol=1e-4, rtol=0)


def test_a_cell_that_is_seen_again_elsewhere_is_not_distinct() -> None:
    a = torch.eye(160)[:150]  # orthogonal: each cell is like itself alone
    a[140] = a[3]
    found = distinctness(a, a, 0.1, (10, 15)).flatten()
    assert found[3] == found[140] == 0
    others = torch.ones(150, dtype=torch.bool)
    others[[3, 140]] = False
    torch.testing.assert_close(found[others], torch.full((148,), 1 / (160 * 0.1)))


def test_all_cells_of_a_tiny_image_are_beside_each_other() -> None:
    assert distinctness(*torch.randn(2, 12, 8), 0.1, (3, 4)).isposinf().all()
