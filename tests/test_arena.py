"""The arena's layout: buffers that live at the same time never share a byte, and room is used again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hashinfer.plan.arena import Lifetime, lay_out

BUFFERS = st.lists(
    st.builds(
        lambda size, first, length: Lifetime(size, first, first + length),
        st.integers(0, 5000),
        st.integers(0, 20),
        st.integers(0, 20),
    ),
    max_size=25,
)


@given(BUFFERS)
def test_buffers_alive_together_are_apart(buffers: list[Lifetime]) -> None:
    offsets, total = lay_out(buffers)
    for k, (a, at) in enumerate(zip(buffers, offsets, strict=True)):
        assert at % 64 == 0
        assert at + a.size <= total
        for b, bt in zip(buffers[:k], offsets[:k], strict=True):
            together = a.first <= b.last and b.first <= a.last
            assert not (together and a.size and b.size) or at + a.size <= bt or bt + b.size <= at


def test_a_chain_takes_two_buffers() -> None:
    chain = [Lifetime(1000, k, k + 1) for k in range(50)]
    assert lay_out(chain)[1] == 2 * 1024


def test_many_buffers_take_no_quadratic_time() -> None:
    chain = [Lifetime(64 * (k % 7 + 1), k, k + 3) for k in range(50_000)]
    assert lay_out(chain)[1] < 64 * 7 * 8
