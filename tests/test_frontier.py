"""The frontier of error against bytes: what is counted, how numbers are rounded, and the forms that are trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from bench.frontier import forms, report, run, storage  # noqa: E402
from bench.frontier.points import DENSE, FULL, HASHED, LOW_RANK, OBD, RECIPE, TUNED, Point, points  # noqa: E402
from bench.paper.sets import DataSet  # noqa: E402


def decoded(mask: np.ndarray, bits: int) -> tuple[int, np.ndarray]:
    """The gap form written out for real: (bytes of the codes, the places read back from them)."""
    codes, last = [], -1
    for place in np.flatnonzero(mask):
        gap = place - last
        while gap > 2**bits:
            codes.append((2**bits, False))
            gap -= 2**bits
        codes.append((gap, True))
        last = place
    at, places = -1, []
    for gap, real in codes:
        at += gap
        if real:
            places.append(at)
    found = np.zeros(mask.size, bool)
    found[places] = True
    return len(codes) * bits // 8 + (len(codes) - mask.sum()) * 4, found.reshape(mask.shape)


@given(st.integers(0, 10**6), st.floats(0.0005, 0.9))
def test_index_bytes_are_those_of_an_index_that_can_be_read_back(seed: int, density: float) -> None:
    mask = np.random.default_rng(seed).random((60, 50)) < density
    sizes = [-(-mask.size // 8)]
    for bits in (8, 16):
        size, again = decoded(mask, bits)
        assert np.array_equal(again, mask)
        sizes.append(int(size))
    assert storage.index_bytes(mask, 32) == min(sizes)


def test_layer_bytes() -> None:
    assert storage.Layer(1000, 10, biases=10).size("float32") == 4040
    assert storage.Layer(1000, 10, biases=10).size("float16") == 2040
    assert storage.Layer(1000, 10, biases=10).size("int8") == 1000 + 40 + 40
    assert storage.Layer(1001, 10).size("int4") == 501 + 40
    assert storage.Layer(1000, 10).size("int2") == 250 + 40
    assert storage.Layer(4096, 1, seed=True).size("int8") == 4096 + 4 + 4
    mask = np.zeros((100, 10), bool)
    mask[::10, 3] = True
    pruned = storage.Layer(1000, 10, biases=10, mask=mask)
    assert pruned.kept == 10
    assert pruned.size("float32") == 40 + 40 + storage.index_bytes(mask, 32)


@pytest.mark.parametrize("kind", storage.FORMATS)
def test_rounding_keeps_to_the_levels_of_its_format(kind: str) -> None:
    values = np.random.default_rng(1).standard_normal((400, 3)).astype(np.float32) * [1, 10, 0.1]
    values = values.astype(np.float32)
    found = storage.rounded(values, kind)
    assert found.dtype == np.float32
    for column, source in zip(found.T, values.T, strict=True):
        if storage.FORMATS[kind] < 16:
            assert len(np.unique(column)) <= 2 ** storage.FORMATS[kind] - 1
        step = {"float32": 0, "float16": 1e-3, "int8": 1 / 254, "int4": 1 / 14, "int2": 1}[kind] * np.abs(source).max()
        assert np.abs(column - source).max() <= step * 1.001
    assert np.array_equal(storage.rounded(found, kind), found) or kind == "int2"
    assert not storage.rounded(np.zeros((4, 2), np.float32), kind).any()


@pytest.fixture(scope="module")
def dense() -> forms.Stack:
    torch.manual_seed(2)
    return forms.dense([30, 40, 10])


def batch() -> torch.Tensor:
    return torch.rand(64, 30, generator=torch.Generator().manual_seed(3))


def test_forms_begin_as_the_dense_net(dense: forms.Stack) -> None:
    """At full rank, with nothing pruned, or in 8 bits."""
    x, expected = batch(), dense(batch())
    first, second = dense.layers
    whole = forms.Stack([forms.LowRank(first, 30), forms.LowRank(second, 10)])
    torch.testing.assert_close(whole(x), expected, rtol=1e-4, atol=1e-4)
    kept = forms.masks(dense, 1.0)
    assert all(mask.all() for mask in kept)
    pruned = forms.Stack(forms.Pruned(layer, mask) for layer, mask in zip(dense.layers, kept, strict=True))
    torch.testing.assert_close(pruned(x), expected)
    eight = forms.Stack(forms.Quantised(layer, "int8") for layer in dense.layers)
    assert float((eight(x) - expected).detach().abs().max()) < 0.05 * float(expected.detach().abs().max())


def test_pruning_keeps_what_matters(dense: forms.Stack) -> None:
    curvature = forms.importance(dense, batch())
    for given_curvature in (None, curvature):
        kept = forms.masks(dense, 0.1, given_curvature)
        share = sum(int(m.sum()) for m in kept) / sum(m.size for m in kept)
        assert share == pytest.approx(0.1, abs=0.01)
    weight = dense.layers[0].weight.detach().numpy()
    mask = forms.masks(dense, 0.1)[0]
    assert np.abs(weight[mask]).min() >= np.abs(weight[~mask]).max()


def test_curvature_is_the_mean_square_of_single_gradients(dense: forms.Stack) -> None:
    x = batch()
    share = torch.softmax(dense(x).detach(), 1)
    drawn = torch.multinomial(share, 1, generator=torch.Generator().manual_seed(1)).squeeze(1)
    expected = [torch.zeros_like(layer.weight) for layer in dense.layers]
    for row, label in zip(x, drawn, strict=True):
        dense.zero_grad()
        torch.nn.functional.cross_entropy(dense(row[None]), label[None]).backward()
        for k, layer in enumerate(dense.layers):
            expected[k] += layer.weight.grad**2 / len(x)
    for found, total in zip(forms.importance(dense, x), expected, strict=True):
        np.testing.assert_allclose(found, total.numpy(), rtol=1e-3, atol=1e-9)


def test_pruned_places_stay_zero_and_bits_stay_few_through_a_step(dense: forms.Stack) -> None:
    kept = forms.masks(dense, 0.2)
    pruned = forms.Stack(forms.Pruned(layer, mask) for layer, mask in zip(dense.layers, kept, strict=True))
    two = forms.Stack(forms.Quantised(layer, "int2") for layer in dense.layers)
    label = torch.arange(64) % 10
    for net in (pruned, two):
        before = net(batch()).detach()
        optimizer = torch.optim.SGD(net.parameters(), 0.5)
        torch.nn.functional.cross_entropy(net(batch()), label).backward()
        optimizer.step()
        assert not torch.equal(net(batch()), before)
    moved = pruned.layers[0].weight.detach().numpy()
    assert np.array_equal(moved[~kept[0]], dense.layers[0].weight.detach().numpy()[~kept[0]])
    assert len(np.unique(storage.rounded(two.layers[0].weight.detach().numpy()[:, :1], "int2"))) <= 3


@pytest.mark.parametrize("scheme", ["dyadic", "xxh32"])
@pytest.mark.parametrize("factor", [4, 8, 64, 512])
def test_hashed_nets_stay_within_their_budget(scheme: str, factor: int) -> None:
    net = forms.hashed(scheme, [784, 1000, 10], FULL // factor, 1)
    layers = forms.stored(net)
    numbers = sum(layer.kept for layer in layers)
    assert 0.6 * FULL / factor < numbers <= FULL // factor
    assert sum(layer.size("int8") for layer in layers) == numbers + 16
    x = torch.rand(2, 784)
    before = net(x).detach()
    forms.rounded_copy(net, "int8")
    assert float((net(x).detach() - before).abs().max()) < 0.2 * float(before.abs().max())
    assert len(torch.unique(net.layers[0].weight_vector)) <= 255


def test_points_are_named_once_and_made_as_they_say() -> None:
    every = points()
    assert len({p.name for p in every}) == len(every)
    torch.manual_seed(1)
    full = forms.dense([784, 1000, 10])
    x = torch.rand(50, 784)
    for point in (Point(LOW_RANK, 8), Point(OBD, 16), Point(HASHED, 64, "dyadic")):
        net = point.make(full if point.family in TUNED else None, x)
        expected = {LOW_RANK: 8 * (784 + 1000) + 8 * 1010, OBD: round(794_000 / 16), HASHED: FULL // 64}[point.family]
        assert sum(s.kept for s in forms.stored(net)) <= expected


def test_train_report_and_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two points on a toy set, through the runner, whose rows the report shows; a second run has nothing to do."""
    monkeypatch.setattr(run, "RECIPE", dataclasses.replace(RECIPE, effort=150.0, precision="float32"))
    rng = np.random.default_rng(1)
    label = rng.integers(0, 10, 300)
    image = np.zeros((300, 28, 28), np.uint8)
    image[np.arange(300), label] = 255
    data = DataSet("ROT", image, label, image, label, 50)
    trainer = run.Trainer(data, "ROT", tmp_path)
    out = tmp_path / "results.csv"
    for point in (Point(DENSE), Point(LOW_RANK, 4), Point(HASHED, 64, "dyadic", distilled=True)):
        run.append(out, run.FIELDS, trainer.rows(point))
    rows = run.read(out)
    assert len(rows) == 3 * 4
    assert all(float(r["test_error"]) < 80 and int(r["bytes"]) > 0 for r in rows)
    left = run.missing("ROT", rows)
    assert Point(LOW_RANK, 4) not in left
    assert Point(HASHED, 64, "dyadic") in left
    text = report.text_of(rows, {(LOW_RANK, "", "4", "float32"): 3.25})
    assert "| low rank | 4 | float32 |" in text
    assert "3.2" in text
    best = report.best(rows)
    assert [int(r["bytes"]) for r in best] == sorted(int(r["bytes"]) for r in best)
    pytest.importorskip("matplotlib")
    report.draw("ROT", rows, {}, tmp_path / "rot.png")
    assert (tmp_path / "rot.png").read_bytes().startswith(b"\x89PNG")
