"""The compiled coarse search against the dual softmax (Eq. 2) written out in double precision."""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edm_hloc.base.compiled import cpu_features
from edm_hloc.models import coarse_compiled
from edm_hloc.models.coarse import confident_columns
from edm_hloc.models.coarse_compiled import Products, available_products, compiled_columns

# What this CPU can multiply with beside PyTorch
COMPILED = available_products()[:-1]


def features(rows: int, columns: int, channels: int, magnitude: float) -> tuple[Tensor, Tensor]:
    """(1, N, C) and (1, M, C) of which up to half of the columns belong to rows."""
    generator = torch.Generator().manual_seed(1000 * rows + columns)
    a = torch.randn(1, rows, channels, generator=generator)
    b = torch.randn(1, columns, channels, generator=generator)
    same = min(rows, columns) // 2
    b[:, :same] = a[:, -same:] + 0.2 * b[:, :same] if same else b[:, :same]
    return a * magnitude, b * magnitude


def dual_softmax(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    s = a.double() @ b.double().mT / (a.shape[-1] * temperature)
    return (s.log_softmax(dim=1) + s.log_softmax(dim=2)).exp()


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 700),
    st.sampled_from([8, 16, 33, 128]),
    st.sampled_from([0.02, 0.1, 1.0]),
    st.sampled_from([0.0, 1e-3, 1.0, 2.0, 30.0]),
    st.sampled_from([0.005, 0.01, 0.05, 0.2, 0.9]),
)
def test_it_equals_the_dual_softmax(
    rows: int, columns: int, channels: int, temperature: float, magnitude: float, threshold: float
) -> None:
    """Odd sizes, and temperatures at which exponentials overflow, where another search is used."""
    a, b = features(rows, columns, channels, magnitude)
    p = dual_softmax(a, b, temperature)
    expected = p.max(dim=2).values
    value, column = compiled_columns(a, b, temperature, threshold)
    longest = a.square().sum(-1).max() * b.square().sum(-1).max()
    # Rounding to 12 bits changes a similarity by a ten-thousandth of the largest at most.
    rounding = 1e-5 + 2e-4 * float(longest.sqrt()) / (channels * temperature)
    unclear = (expected - threshold).abs() < rounding
    above = (expected > threshold) & ~unclear
    assert (value > threshold)[~unclear].equal(above[~unclear])
    torch.testing.assert_close(value[above].double(), expected[above], atol=rounding, rtol=rounding)
    chosen = p.gather(2, column[..., None])[..., 0]
    torch.testing.assert_close(chosen[above], expected[above], atol=rounding, rtol=rounding)
    if threshold >= 0.01:
        assert (value[value <= threshold] == 0).all()
        assert (column[value == 0] == 0).all()


@pytest.mark.parametrize("products", COMPILED)
@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 400),
    st.integers(1, 700),
    st.sampled_from([32, 64, 128, 256]),
    st.sampled_from([0.02, 0.1, 1.0]),
    st.sampled_from([0.0, 1e-20, 1e-3, 1.0, 1.5]),
    st.sampled_from([0.01, 0.05, 0.2]),
    st.booleans(),
)
def test_all_products_give_the_same_bits(
    products: Products,
    rows: int,
    columns: int,
    channels: int,
    temperature: float,
    magnitude: float,
    threshold: float,
    ties: bool,
) -> None:
    a, b = features(rows, columns, channels, magnitude)
    if ties:
        a, b = a.sign() * magnitude, b.sign() * magnitude
    call = a, b, temperature, threshold
    found = [compiled_columns(*call, products=which) for which in (products, "torch")]
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("products", [*COMPILED, "torch"])
@given(st.integers(0, 1 << 30), st.integers(1, 3), st.integers(1, 3), st.integers(1, 8))
@settings(max_examples=20, deadline=None)
def test_products_of_whole_numbers_are_exact(
    products: Products, seed: int, m: int, n: int, c: int
) -> None:
    """Of the largest numbers, whose sums just fit in fp32; PyTorch gives the same in double."""
    generator = torch.Generator().manual_seed(seed)
    most = int(4096 / (32 * c) ** 0.5)
    a, b = (
        torch.randint(-most, most + 1, (32 * k, 32 * c), generator=generator).float()
        for k in (m, n)
    )
    a[0], b[0] = most, most
    out = torch.full((32 * m, 32 * n), torch.nan)
    coarse_compiled.multiplier(a, b, products)(slice(0, 32 * m), out)
    assert torch.equal(out.double(), a.double() @ b.double().T)


def test_products_that_are_not_exact_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def multiplier(*_: object) -> Callable[[slice, Tensor], None]:
        return lambda rows, out: out.zero_()  # type: ignore[return-value]

    monkeypatch.setattr(coarse_compiled, "multiplier", multiplier)
    assert available_products.__wrapped__() == ("torch",)


def test_no_instructions_for_a_processor_that_numba_was_told_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(numba.config, "CPU_NAME", "generic", raising=False)
    assert cpu_features() == {}
    assert available_products.__wrapped__() == ("torch",)


def test_of_equal_columns_the_first_is_chosen() -> None:
    a = torch.eye(4)[None] * 4
    b = torch.cat([a, a[:, 1:2], a[:, :1]], dim=1)
    value, column = compiled_columns(a, b, 0.1, 0.1)
    expected = dual_softmax(a, b, 0.1).max(dim=2).values
    torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=1e-6)
    assert column[0].tolist() == [0, 1, 2, 3]


def test_exponentials_whose_products_overflow() -> None:
    a = torch.eye(4)[None] * 4.5
    value, column = compiled_columns(a, a, 0.1, 0.05)  # similarities of 51
    assert value[0].tolist() == [1.0] * 4
    assert column[0].tolist() == [0, 1, 2, 3]


def test_all_entries_equal() -> None:
    """Each is a candidate, exactly at the threshold or just above it."""
    a = torch.zeros(1, 70, 8)
    for columns in (1, 5, 20, 99, 100):
        value, column = compiled_columns(a, torch.zeros(1, columns, 8), 0.1, 0.01)
        assert (value > 0).all() == (1 / columns / 70 > 0.01)
        assert (column == 0).all()


def test_pairs_of_a_batch_are_searched_one_by_one() -> None:
    a, b = torch.randn(3, 90, 16), torch.randn(3, 70, 16)
    b[:, :40] = a[:, 20:60]
    a[1] *= 100  # too large for the compiled search
    value, column = compiled_columns(a, b, 0.1, 0.05)
    assert (value > 0).sum() > 60
    for i in range(3):
        one = compiled_columns(a[i : i + 1], b[i : i + 1], 0.1, 0.05)
        assert torch.equal(value[i], one[0][0])
        assert torch.equal(column[i], one[1][0])


def test_the_same_bits_on_any_number_of_cores() -> None:
    a, b = features(1100, 700, 32, 1.5)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(compiled_columns(a, b, 0.1, 0.05))
    finally:
        torch.set_num_threads(before)
    assert (found[0][0] > 0).sum() > 300
    for value, column in found[1:]:
        assert torch.equal(value, found[0][0])
        assert torch.equal(column, found[0][1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_left_to_the_plain_search(
    bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = features(40, 50, 16, 1.0)
    a[0, 3, 2] = bad
    left: list[int] = []

    def plain(*args: object) -> tuple[Tensor, Tensor]:
        left.append(1)
        return confident_columns(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(coarse_compiled, "confident_columns", plain)
    compiled_columns(a, b, 0.1, 0.05)
    assert left == [1]


def test_powers_of_two() -> None:
    """The block's sums are those of NumPy's exponentials, over the whole range."""
    s = np.linspace(-86, 86, 4001, dtype=np.float32)[:, None].copy()
    total, columns = np.empty(len(s), np.float32), np.zeros(1, np.float32)
    place, value = np.empty((9000, 2), np.int32), np.empty(9000, np.float32)
    scale = np.float32(1), np.float32(0.5)
    count = coarse_compiled.scan(s, scale, total, columns, place, value)
    np.testing.assert_allclose(total, np.exp2(s[:, 0].astype(np.float64)), rtol=3e-7)
    assert count == len(s)
