"""The benchmark of the paper: its sets, its storage budgets, its fast layers, its runner and its report."""

from __future__ import annotations

import csv
import gzip
import itertools
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from bench.paper import cells, report, run, sets, shapes, train  # noqa: E402
from bench.paper.cells import Cell  # noqa: E402
from bench.paper.nets import HashedLayer, Masks, Net  # noqa: E402
from hashinfer.schemes import scheme_named  # noqa: E402

# The smallest hashed and dense nets of the benchmark.
SMALL = Cell("MNIST", 3, 1, cells.HASHNET, "dyadic", inflation=1)
QUICK = train.Recipe(effort=16.0, precision="float32")


def test_rectangles_are_outlines_labelled_by_their_longer_side() -> None:
    image, label = shapes.rectangles(300, np.random.default_rng(1))
    assert image.shape == (300, 28, 28)
    for picture, tall in zip(image, label, strict=True):
        rows, columns = np.flatnonzero(picture.any(1)), np.flatnonzero(picture.any(0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert abs(height - width) >= 3
        assert tall == (height > width)
        outline = np.full((height, width), 255, np.uint8)
        outline[1:-1, 1:-1] = 0
        np.testing.assert_array_equal(picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], outline)
    assert 0.3 < label.mean() < 0.7


def test_convex_regions_are_convex_the_others_are_not_and_both_are_as_large() -> None:
    image, label = shapes.convex(2000, np.random.default_rng(2))
    region = image == 255
    assert set(np.unique(image)) == {0, 255}
    for picture, convex in zip(region[:300], label[:300], strict=True):
        assert shapes.is_convex(picture) == bool(convex)
    count = region.sum((1, 2))
    assert label.sum() == 1000
    assert count[label == 1].min() >= shapes.CONVEX_PIXELS
    assert count[label == 0].min() >= shapes.PART_PIXELS
    assert count[label == 1].mean() == pytest.approx(count[label == 0].mean(), rel=0.1)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_convexity_agrees_with_caratheodory(data: st.DataObject) -> None:
    """A point is in the hull where some triangle of the region's points holds it (Caratheodory's theorem)."""
    points = data.draw(st.sets(st.tuples(st.integers(8, 12), st.integers(8, 12)), min_size=1, max_size=8))
    region = np.zeros((28, 28), np.bool_)
    for p in points:
        region[p] = True

    def cross(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> int:
        return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])

    def holds(triangle: tuple[tuple[int, int], ...], p: tuple[int, int]) -> bool:
        a, b, c = triangle
        sides = [cross(a, b, p), cross(b, c, p), cross(c, a, p)]
        box = all(min(t[k] for t in triangle) <= p[k] <= max(t[k] for t in triangle) for k in (0, 1))
        return box and (min(sides) >= 0 or max(sides) <= 0)

    others = [p for p in itertools.product(range(7, 14), repeat=2) if p not in points]
    triangles = list(itertools.combinations_with_replacement(sorted(points), 3))
    assert shapes.is_convex(region) == (not any(holds(t, p) for t in triangles for p in others))


def test_rotation_by_quarter_turns_is_exact() -> None:
    pytest.importorskip("scipy")
    # Digits have an empty border: what lies beyond the picture is black.
    image = np.pad(np.random.default_rng(3).integers(0, 256, (3, 26, 26), np.uint8), ((0, 0), (1, 1), (1, 1)))
    turned = sets.rotate(image, np.array([0.0, math.pi / 2, math.pi]))
    expected = np.stack([np.rot90(picture, k) for k, picture in enumerate(image)])
    assert np.abs(turned.astype(int) - expected).max() <= 1


def test_the_median_of_other_sets_is_black() -> None:
    image, rng = np.zeros((40, 28, 28), np.uint8), np.random.default_rng(4)
    image[:, 10:18, 10:18] = 255
    made = {name: sets._VARIATIONS[name](image, rng) for name in ("BASIC", "ROT")}
    made |= {"MNIST": image, "RECT": shapes.rectangles(200, rng)[0], "CONVEX": shapes.convex(200, rng)[0]}
    assert made.keys() == set(sets.NAMES) - set(sets.GREY)
    assert all(train.Scale.of(each).zero == 0 for each in made.values())


def test_backgrounds_leave_the_digit() -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    image = np.zeros((40, 28, 28), np.uint8)
    image[:, 10:18, 10:18] = 255
    for name in sets.GREY:
        made = sets._VARIATIONS[name](image, np.random.default_rng(4))
        assert made.shape == image.shape
        assert made.dtype == np.uint8
        assert (made[:, 12:16, 12:16] > 245).all()
        assert (made[:, :8].reshape(40, -1).std(1) > 0).all()
        assert train.Scale.of(made).zero > 0


def write_mnist(folder: Path) -> None:
    """MNIST's four files with pictures that tell their own number."""
    for part, count, first in (("train", 60_000, 0), ("t10k", 10_000, 60_000)):
        image = np.zeros((count, 28, 28), np.uint8)
        image.reshape(count, -1)[:, :4] = np.arange(first, first + count, dtype="<u4").view(np.uint8).reshape(-1, 4)
        label = (np.arange(first, first + count) % 10).astype(np.uint8)
        for name, array in (("images-idx3", image), ("labels-idx1", label)):
            head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            path = folder / f"{part}-{name}-ubyte.gz"
            path.write_bytes(gzip.compress(head + array.tobytes(), 1))


def test_sets_are_cached_and_share_no_image_between_training_and_test(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    basic = sets.load("BASIC", tmp_path, tmp_path / "cache")
    assert (len(basic.image), basic.valid, len(basic.test_image)) == (12_000, 2_000, 50_000)
    number = np.concatenate([basic.image, basic.test_image]).reshape(62_000, -1)[:, :4].copy().view("<u4")[:, 0]
    assert len(np.unique(number)) == 62_000
    assert (number[:12_000] < 60_000).all()
    np.testing.assert_array_equal(number % 10, np.concatenate([basic.label, basic.test_label]))
    for path in tmp_path.glob("*.gz"):
        path.unlink()
    again = sets.load("BASIC", tmp_path, tmp_path / "cache")
    np.testing.assert_array_equal(again.test_image, basic.test_image)
    with pytest.raises(FileNotFoundError):
        sets.load("MNIST", tmp_path, tmp_path / "cache")


def test_a_broken_cache_is_named(tmp_path: Path) -> None:
    path = tmp_path / f"rect-v{sets.VERSION}-seed{sets.SEED}.npz"
    path.write_bytes(b"not an archive")
    with pytest.raises(ValueError, match=r"rect-v.*delete it"):
        sets.load("RECT", tmp_path, tmp_path)
    np.savez(path, image=np.zeros((3, 28, 28), np.uint8), label=np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="delete it"):
        sets.load("RECT", tmp_path, tmp_path)


def test_idx_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(struct.pack(">HBBI", 0, 9, 1, 4) + b"abcd")
    with pytest.raises(ValueError, match="x is not an IDX file"):
        sets.read_idx(tmp_path, "x")


def test_no_cell_stores_more_than_the_papers_budget() -> None:
    for cell in (c for c in cells.plan() if c.seed == 1):
        if cell.scheme:
            stored = sum(s.buckets for s in cell.schemes()) + cell.gains
            virtual = [(s.rows, s.cols) for s in cell.schemes()]
            assert virtual == [(m + 1, n) for m, n in itertools.pairwise(cell.units)]
        else:
            stored = cells.numbers(cell.units)
            more = [cell.units[0], *(n + 1 for n in cell.units[1:-1]), cell.units[-1]]
            assert cells.numbers(more) > cell.budget, cell.name
        assert 0.9 * cell.budget < stored <= cell.budget, cell.name


def test_the_plan_names_every_cell_once_and_teachers_first() -> None:
    order = cells.plan()
    assert len({c.name for c in order}) == len(order)
    place = {c: k for k, c in enumerate(order)}
    assert all(place[c.teacher] < place[c] for c in order if c.distilled)
    table = [c for c in order if c.seed == 1 and not c.inflation and c.ratio > 1]
    assert len(table) == 8 * 2 * 2 * 6
    assert Cell("MNIST", 3, 64, cells.NN).budget == 12_422
    assert Cell("ROT", 5, 8, cells.NN).budget == (785 * 1000 + 2 * 1001 * 1000 + 1001 * 10) // 8


@pytest.mark.parametrize(("total", "sizes"), [(0, [3]), (7, [1, 1, 1]), (41, [785, 1001, 1001]), (5, [1, 1000])])
def test_shares_are_whole_and_near(total: int, sizes: list[int]) -> None:
    got = cells.shares(total, sizes)
    assert sum(got) == total
    assert all(abs(g - total * s / sum(sizes)) < 1 for g, s in zip(got, sizes, strict=True))


@pytest.mark.parametrize("name", ["xxh32", "dyadic"])
@pytest.mark.parametrize(("rows", "cols", "budget"), [(65, 30, 300), (33, 7, 5), (785, 50, 3000)])
def test_the_fast_layer_is_the_products_hashed_linear(name: str, rows: int, cols: int, budget: int) -> None:
    """Its outputs and gradients are those of hashinfer.torch on inputs with a 1 behind: the hashed biases."""
    from hashinfer.torch.expand import expand

    torch.manual_seed(1)
    layer = HashedLayer(scheme_named(name).fit(rows, cols, budget, seed=9))
    x = torch.randn(12, rows - 1, requires_grad=True)
    seen = torch.randn(12, cols)
    layer(x).backward(seen)
    w = layer.weight_vector.detach().clone().requires_grad_()
    y = x.detach().clone().requires_grad_()
    reference = torch.cat([y, torch.ones(12, 1)], 1) @ expand(w, layer.scheme)
    reference.backward(seen)
    torch.testing.assert_close(layer(x), reference, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.weight_vector.grad, w.grad, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["xxh32", "dyadic"])
def test_the_fast_layer_in_bfloat16_is_near_float32(name: str) -> None:
    torch.manual_seed(1)
    layer = HashedLayer(scheme_named(name).fit(785, 100, 2048, seed=9))
    x, seen = torch.randn(32, 784), torch.randn(32, 100)
    layer(x).backward(seen)
    wide = layer.weight_vector.grad
    layer.weight_vector.grad = None
    layer(x.bfloat16()).backward(seen.bfloat16())
    apart = (layer.weight_vector.grad - wide).norm() / wide.norm()
    assert apart < 0.02
    assert layer.weight_vector.grad.dtype == torch.float32


def test_virtual_weights_have_the_variance_of_he() -> None:
    torch.manual_seed(2)
    cell = Cell("MNIST", 5, 64, cells.HASHNET, "xxh32")
    for layer in Net(cell).layers:
        deviation = layer.weight_vector.detach().std()
        assert deviation == pytest.approx((2 / layer.scheme.rows) ** 0.5, rel=0.1)


@pytest.mark.parametrize("data", ["BG-RAND", "ROT"])
def test_inputs_on_a_background_have_gains_which_a_hashed_net_pays_for(data: str) -> None:
    grey, x = data in sets.GREY, torch.randn(3, 784)
    for cell in (Cell(data, 3, 64, cells.NN), Cell(data, 3, 64, cells.HASHNET, "dyadic")):
        net = Net(cell)
        every = sum(p.numel() for p in net.parameters())
        paid = bool(cell.scheme)
        assert net.numbers == every - (784 if grey and not paid else 0) <= cell.budget
        assert cell.gains == (784 if grey and paid else 0)
        before = net(x)
        with torch.no_grad():
            for name, p in net.named_parameters():
                if name == "gain":
                    p.mul_(torch.arange(784) % 2)
        assert torch.equal(net(x), before) != grey
        assert torch.equal(net(x), net(x * (torch.arange(784) % 2))) == grey


def test_masks_drop_their_share_keep_the_mean_and_repeat() -> None:
    x = torch.ones(400, 1000)
    once, again = Masks((1, 2))(x, 0.25), Masks((1, 2))(x, 0.25)
    assert torch.equal(once, again)
    assert not torch.equal(once, Masks((1, 3))(x, 0.25))
    assert float((once == 0).float().mean()) == pytest.approx(0.25, abs=0.005)
    assert float(once.mean()) == pytest.approx(1, abs=0.01)
    assert Masks((1, 2))(x, 0.0) is x


def images(count: int = 60, classes: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs [count, 784] that a net can tell apart, and their labels."""
    random = np.random.default_rng(5)
    label = np.arange(count) % classes
    x = random.normal(size=(classes, 784))[label] + 0.5 * random.normal(size=(count, 784))
    return torch.from_numpy(x).float(), torch.from_numpy(label)


def test_a_resumed_run_takes_the_same_steps(tmp_path: Path) -> None:
    x, label = images(900)
    whole, _, epochs = train.train(SMALL, QUICK, x, label)
    assert epochs == 1
    recipe = train.Recipe(effort=76.0, precision="float32")
    whole, _, epochs = train.train(SMALL, recipe, x, label)
    assert epochs == 5
    checkpoint = tmp_path / "run.checkpoint"

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.train(SMALL, recipe, x, label, checkpoint=checkpoint, progress=stop)
    resumed, _, _ = train.train(SMALL, recipe, x, label, checkpoint=checkpoint)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert train.error_percent(train.logits_of(resumed, x), label) < 5
    other = train.Recipe(effort=76.0, lr=0.001, precision="float32")
    with pytest.raises(ValueError, match="is of another run"):
        train.train(SMALL, other, x, label, checkpoint=checkpoint)


def test_distillation_moves_a_net_towards_its_teacher() -> None:
    x, label = images(300)
    recipe = train.Recipe(effort=150.0, distill=1.0, precision="float32")
    teacher = train.train(Cell("MNIST", 3, 1, cells.NN, inflation=1), recipe, x, (label + 3) % 10)[0]
    cell = Cell("MNIST", 3, 1, cells.HASHNET_DK, "xxh32", inflation=1)
    net = train.train(cell, recipe, x, label, teacher=teacher.narrow(torch.float32))[0]
    # The teacher was taught other labels, and its answers are all that counts at distill = 1.
    assert train.error_percent(train.logits_of(net, x), (label + 3) % 10) < 5


def test_a_teacher_sees_whole_inputs() -> None:
    x, label = images(40)
    seen = []

    class Teacher(Net):
        def forward(self, x, masks=None, drop=(0.0, 0.0)):
            seen.append(x)
            return super().forward(x, masks, drop)

    recipe = train.Recipe(effort=16.0, precision="float32")
    rect = Cell("RECT", 3, 8, cells.HASHNET_DK, "xxh32")
    train.train(rect, recipe, x, label % 2, teacher=Teacher(rect.teacher))
    assert [torch.equal(each, x) for each in seen] == [True]


def test_few_images_get_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    x, label = images(40)
    seen = []
    monkeypatch.setattr(Net, "forward", lambda self, x, *rest: seen.append(x) or super(Net, self).forward(x, *rest))
    recipe = train.Recipe(effort=4.0, effort_fine=4.0, noise_few=0.5, radius=0.0, radius_fine=0.0, precision="float32")
    for name in ("RECT", "CONVEX"):
        cell = Cell(name, 3, 64, cells.NN)
        train.train(cell, recipe, torch.zeros_like(x), label % 2)
    half = len(seen) // 2
    assert all(float(x.std()) == pytest.approx(0.5, rel=0.05) for x in seen[:half])
    assert not any(x.any() for x in seen[half:])


def test_perturbed_inputs_lie_at_the_radius_and_raise_the_loss() -> None:
    torch.manual_seed(3)
    x, label = images(50)
    net = Net(SMALL)
    losses = []
    for radius in (0.0, 0.5):
        x.requires_grad_().grad = None
        torch.nn.functional.cross_entropy(net(x), label).backward()
        moved = train.perturbed(x, radius)
        torch.testing.assert_close((moved - x).norm(dim=1), torch.full((50,), radius), rtol=1e-4, atol=1e-6)
        losses.append(torch.nn.functional.cross_entropy(net(moved), label, reduction="none"))
    assert (losses[1] > losses[0]).all()
    still = torch.zeros(2, 784, requires_grad=True)
    still.sum().mul(0).backward()
    assert torch.equal(train.perturbed(still, 1.0), still)


def test_half_of_the_loss_is_of_perturbed_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    x, label = images(40)
    seen: list[torch.Tensor] = []
    shares: list[float] = []
    forward, loss_of = Net.forward, train.loss_of

    def watched(*args: object, **kwargs: object) -> torch.Tensor:
        loss = loss_of(*args, **kwargs)
        loss.register_hook(lambda grad: shares.append(float(grad)))
        return loss

    monkeypatch.setattr(Net, "forward", lambda self, x, *rest: seen.append(x.detach()) or forward(self, x, *rest))
    monkeypatch.setattr(train, "loss_of", watched)
    cell = Cell("ROT", 3, 64, cells.NN)
    train.train(cell, train.Recipe(effort=4.0, precision="float32"), x, label)
    radius = train.Recipe().radius_of(cell)
    assert shares == [0.5] * len(seen) != []
    for whole, moved in zip(seen[::2], seen[1::2], strict=True):
        torch.testing.assert_close((moved - whole).norm(dim=1), torch.full((len(whole),), radius))


def test_the_radius_goes_by_what_a_net_stores() -> None:
    recipe = train.Recipe(radius=3.0, radius_fine=1.0)
    assert recipe.radius_of(Cell("ROT", 3, 64, cells.NN)) == pytest.approx(3 * (12_422 / 100_000) ** 0.5)
    assert recipe.radius_of(Cell("ROT", 5, 1, cells.TEACHER)) == 6.0
    assert recipe.radius_of(Cell("CONVEX", 5, 1, cells.TEACHER)) == 2.0
    small = Cell("BASIC", 3, 8, cells.HASHNET, "dyadic"), Cell("BASIC", 3, 8, cells.DK)
    assert len({recipe.radius_of(cell) for cell in small}) == 1


def test_the_pace_rises_then_falls() -> None:
    values = [train.pace(k / 1000, 0.05) for k in range(1001)]
    assert max(values) == pytest.approx(1, abs=1e-3)
    assert values.index(max(values)) == 50
    assert values[-1] == pytest.approx(0.01)
    assert values[:51] == sorted(values[:51])
    assert values[50:] == sorted(values[50:], reverse=True)


def test_the_budget_is_in_images_seen_and_grows_slower_than_the_set() -> None:
    recipe = train.Recipe()
    sizes = (1_200, 8_000, 12_000, 60_000)
    few, some, more, most = epochs = [recipe.epochs(n, "MNIST") for n in sizes]
    seen = [e * n for e, n in zip(epochs, sizes, strict=True)]
    assert seen == sorted(seen)
    assert most == more < some < few
    assert recipe.epochs(8_000, "CONVEX") == round(recipe.effort_fine / 8_000**0.4)
    assert [recipe.batch_at(0, 40, n) for n in (1_200, 8_000, 12_000, 60_000)] == [32, 96, 128, 272]
    assert [recipe.batch_at(e, 9, 12_000) for e in (5, 6, 8)] == [128, 256, 256]


def test_dropout_goes_by_storage_not_by_kind_of_net() -> None:
    recipe = train.Recipe(drop_in=0.2, drop_grey=0.3, drop=0.4, drop_deep=0.3, ease=0.1)
    assert recipe.drops(Cell("BG-IMG", 3, 1, cells.TEACHER)) == (0.3, 0.4)
    assert recipe.drops(Cell("BG-IMG", 3, 8, cells.NN))[0] == 0.3
    assert recipe.drops(Cell("ROT", 3, 1, cells.TEACHER)) == (0.2, 0.4)
    assert recipe.drops(Cell("CONVEX", 3, 1, cells.TEACHER)) == (0.0, 0.4)
    for depth, expected in ((3, (0.14, 0.28)), (5, (0.2, 0.21))):
        for method, scheme in ((cells.NN, ""), (cells.HASHNET, "dyadic")):
            found = recipe.drops(Cell("ROT", depth, 8, method, scheme))
            assert found == pytest.approx(expected, abs=1e-4)
    taught = train.Recipe(drop_in=0.2, drop=0.4, taught=0.25).drops(Cell("ROT", 3, 8, cells.DK))
    assert taught == pytest.approx((0.14, 0.07), abs=1e-4)
    assert train.Recipe(ease=0.5).drops(Cell("ROT", 3, 64, cells.NN)) == (0, 0)


def test_a_digest_is_of_those_fields_that_the_cell_is_trained_by() -> None:
    base = train.Recipe()
    cell, deep, grey, few, fine = (
        Cell(data, depth, 64, cells.HASHNET, "dyadic")
        for data, depth in (("MNIST", 3), ("MNIST", 5), ("BG-IMG", 3), ("RECT", 3), ("CONVEX", 3))
    )
    taught, teacher = Cell("MNIST", 3, 64, cells.HASHNET_DK, "dyadic"), cell.teacher
    found: dict[Cell, set[str]] = {c: set() for c in (cell, deep, grey, few, fine, taught, teacher)}
    for name, value in vars(base).items():
        other = "float32" if isinstance(value, str) else 2 * value + 0.1
        changed = train.Recipe(**{**vars(base), name: other})
        for one, names in found.items():
            if changed.digest(one) != base.digest(one):
                names.add(name)
    of_distilling = {"distill", "warmth", "taught"}
    of_fine = {"drop_fine", "radius_fine", "effort_fine"}
    of_kinds = {"drop_deep", "drop_grey", "noise_few"} | of_fine
    assert found[cell] == set(vars(base)) - of_kinds - of_distilling
    assert found[taught] == found[cell] | of_distilling
    assert found[teacher] == found[cell] - {"ease"}
    assert found[deep] == found[cell] - {"drop"} | {"drop_deep"}
    small = found[cell] - {"most"}
    assert found[grey] == small - {"drop_in"} | {"drop_grey"}
    assert found[fine] == small - {"drop_in", "radius", "effort"} | of_fine
    assert found[few] == small | {"noise_few"}


def test_inputs_are_zero_at_the_median_level() -> None:
    image = np.zeros((3, 28, 28), np.uint8)
    image[:, :5] = 200
    dark = train.Scale.of(image)
    assert dark.zero == 0
    x = dark.inputs(image)
    assert x.shape == (3, 784)
    assert float(x.std(correction=0)) == pytest.approx(1)
    image[:, 10:] = 90
    assert not train.Scale.of(image).inputs(image)[:, 10 * 28 :].any()


def test_sets_share_a_digest_where_they_are_trained_alike() -> None:
    alike: dict[str, set[str]] = {}
    for name in sets.NAMES:
        alike.setdefault(train.Recipe().digest(Cell(name, 3, 8, cells.NN)), set()).add(name)
    assert sorted(map(sorted, alike.values())) == [["BASIC", "MNIST", "ROT"], sorted(sets.GREY), ["CONVEX"], ["RECT"]]


@pytest.fixture
def small_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The runner with small data, a quick recipe and a plan of four small nets; the arguments that start it."""
    x = np.random.default_rng(6).integers(0, 256, (10, 28, 28), np.uint8)
    label = np.arange(200) % 10
    data = sets.DataSet("MNIST", x[label], label, x, np.arange(10), 0)
    teacher = Cell("MNIST", 3, 64, cells.TEACHER)
    monkeypatch.setattr(Cell, "teacher", property(lambda _: teacher))
    order = [
        teacher,
        *(Cell("MNIST", 3, 64, m, s) for m, s in ((cells.NN, ""), (cells.DK, ""), (cells.HASHNET_DK, "dyadic"))),
    ]
    monkeypatch.setattr(run, "load", lambda *_: data)
    monkeypatch.setattr(run, "plan", lambda: order)
    monkeypatch.setattr(run, "Recipe", lambda: QUICK)
    return [
        "run",
        "--data",
        str(tmp_path),
        "--cache",
        str(tmp_path),
        "--runs",
        str(tmp_path / "runs"),
        "--out",
        str(tmp_path / "r.csv"),
    ]


def test_the_runner_writes_a_row_a_cell_and_goes_on_where_it_was(
    small_world: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(*more: str) -> str:
        monkeypatch.setattr("sys.argv", [*small_world, *more])
        run.main()
        return capsys.readouterr().out

    assert len(start("--list").split()) == 4
    assert len(start("--limit", "2").splitlines()) == 2
    (tmp_path / "runs" / f"mnist-3l-c64-full-s1-{QUICK.digest(Cell('MNIST', 3, 64, cells.TEACHER))}.pt").unlink()
    # Two cells are left, and their teacher's weights are gone.
    assert len(start().splitlines()) == 3
    assert start() == ""
    rows = run.read(tmp_path / "r.csv")
    assert sorted(r["method"] for r in rows) == ["DK", "HashNet_DK", "NN", "full"]
    for row in rows:
        assert int(row["stored"]) <= int(row["budget"]) == 12_422
        assert 0 <= float(row["test_error"]) <= 100
        assert row["epochs"] == "2"
    assert not list((tmp_path / "runs").glob("*.checkpoint"))


def test_a_results_file_of_other_columns_is_refused(
    small_world: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.csv").write_text("a,b\n1,2\n")
    monkeypatch.setattr("sys.argv", small_world)
    with pytest.raises(SystemExit) as caught:
        run.main()
    assert caught.value.code == 2
    assert "has columns ['a', 'b']" in capsys.readouterr().err


def row(cell: Cell, error: float) -> run.Row:
    """A row as the runner writes it."""
    rest = {"stored": "1", "budget": "2", "units": "784-50-10", "images": "3", "epochs": "4", "seconds": "5"}
    return {**run.key(cell), "test_error": f"{error}", **rest, "recipe": train.Recipe().digest(cell)}


def test_the_papers_tables_are_read_as_printed() -> None:
    table = report.paper()
    assert len(table) == 8 * 2 * 2 * 6
    assert table["MNIST", 3, 64, "HashNet"] == 2.79
    assert table["ROT", 5, 8, "HashNet_DK"] == 8.61


def test_the_report_counts_claims_swaps_two_rows_and_lists_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    rows = [row(Cell("MNIST", 3, 64, "HashNet", s), e) for s, e in (("xxh32", 3.0), ("dyadic", 2.79))]
    rows += [row(Cell("RECT", 3, 8, "HashNet", s), e) for s, e in (("xxh32", 3.5), ("dyadic", 3.3))]
    rows += [row(Cell("CONVEX", 3, 8, "HashNet", "xxh32"), 1.0)]
    rows += [row(Cell("MNIST", 3, 64, "HashNet", "dyadic", seed=2), 2.77)]
    rows += [row(Cell("MNIST", 3, 1, "HashNet", "dyadic", inflation=8), 1.5)]
    run.write(path, rows)
    recipe = train.Recipe()
    found = {(c.data, c.depth, c.ratio, c.method): c for c in report.claims(report.errors(recipe, path))}
    assert len(found) == 6 * 2 * 2 * 2
    assert found["MNIST", 3, 64, "HashNet"].held
    assert found["MNIST", 3, 64, "HashNet"].ours == pytest.approx(2.78)
    rectangles = found["RECT", 3, 8, "HashNet"]
    assert (rectangles.theirs, rectangles.as_printed, rectangles.ours, rectangles.held) == (3.23, 27.06, 3.3, False)
    # One of two schemes says nothing yet.
    assert found["CONVEX", 3, 8, "HashNet"].held is None
    left = report.untrained(recipe, path)
    assert len(left) == len(cells.plan()) - len(rows)
    points = report.inflation(recipe, path)
    assert [p["inflation"] for p in points] == [8]
    text = report.text_of(report.errors(recipe, path), points, left)
    assert "HashNet: at or under the paper's in 1 of 2 cells (22 of 24 not yet trained)" in text
    assert "RECT 3L 1/8 HashNet 3.30 (paper 3.23)" in text
    assert "**2.78 ± 0.01** ✓" in text
    assert "RECT (paper's row CONVEX)" in text


def test_the_report_draws_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "results.csv"
    rows = [row(Cell("MNIST", 3, 64, "HashNet", s), 2.5) for s in ("xxh32", "dyadic")]
    rows += [row(Cell("MNIST", 3, 1, m, s, inflation=1), 3.0) for m, s in (("NN", ""), ("HashNet", "dyadic"))]
    run.write(path, rows)
    monkeypatch.setattr("sys.argv", ["report", "--results", str(path), "--out", str(tmp_path)])
    report.main()
    assert (tmp_path / "tables.md").read_text() + "\n" == capsys.readouterr().out
    for name in ("tables.png", "inflation.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_readme_shows_dense_nets_beside_the_trained_cells() -> None:
    seen = {("ROT", 3, 8, "HashNet", s): [e] for s, e in (("xxh32", 11.5), ("dyadic", 11.25))}
    seen |= {("BG-IMG", 5, 64, m, s): [20.0] for m in ("HashNet", "HashNet_DK") for s in cells.SCHEMES}
    seen |= {("ROT", 3, 8, "NN", ""): [13.0], ("MNIST", 3, 8, "NN", ""): [1.5], ("BG-IMG", 5, 64, "DK", ""): [21.0]}
    assert report.readme_table(seen).splitlines()[2:] == [
        "| ROT, 3L, 1/8 | 11.25 (over) | 11.17 | - | 10.34 | 13.00 | - |",
        "| BG-IMG, 5L, 1/64 | 20.00 |  | 20.00 |  | - | 21.00 |",
    ]


def test_results_in_the_repository_keep_within_their_budgets() -> None:
    rows = run.read(run.RESULTS)
    known = {c.name: c for c in cells.plan()}
    for r in rows:
        cell = Cell(
            r["set"], int(r["depth"]), int(r["ratio"]), r["method"], r["scheme"], int(r["seed"]), int(r["inflation"])
        )
        assert cell.name in known
        assert int(r["budget"]) == cell.budget
        assert int(r["stored"]) <= cell.budget
        assert r["units"] == "-".join(map(str, cell.units))
    with run.RESULTS.open(newline="") as file:
        assert len(list(csv.reader(file))) == len(rows) + 1


def test_the_readme_has_what_adversarial_training_is_worth_from_the_choices() -> None:
    """In percent of the validation images, by this recipe and by twice the epochs without it."""
    recipe, folder = train.Recipe(), run.RESULTS.parent
    with (folder / "choice.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if (r["depth"], r["ratio"], r["method"]) == ("3", "8", cells.HASHNET)]

    def wrong(data: str, effort: float, **rest: float) -> str:
        changes = [f"effort={effort:g} drop_in=0.25 out_buckets=8192", *(f"{name}={rest[name]:g}" for name in rest)]
        wanted = (data, "dyadic", " ".join(changes))
        return next(r["valid_error"] for r in rows if (r["set"], r["scheme"], r["recipe"]) == wanted)

    now = {"effort": recipe.effort, "drop": recipe.drop}
    text = " ".join((folder.parent / "README.md").read_text().split())
    rot = wrong("ROT", **now, radius=1.994), wrong("ROT", effort=2600)
    mnist = wrong("MNIST", **now, radius=recipe.radius), wrong("MNIST", effort=5200)
    assert f"{rot[0]} % of ROT's validation images were wrong in place of {rot[1]} %" in text
    assert f"{mnist[0]} % of MNIST's in place of {mnist[1]} %" in text


def test_hashed_nets_beat_dense_ones_of_equal_storage_but_where_the_readme_says() -> None:
    """Of the results that the repository holds, the better hashed and the better dense net of each cell."""
    seen = report.errors(train.Recipe(), run.RESULTS)
    lost = set()
    for data, depth, ratio in itertools.product(sets.NAMES, cells.DEPTHS, cells.RATIOS):
        hashed, dense = (
            min(report.mean_of(seen, (data, depth, ratio, method, scheme)) for method in methods for scheme in schemes)
            for methods, schemes in (((cells.HASHNET, cells.HASHNET_DK), cells.SCHEMES), ((cells.NN, cells.DK), ("",)))
        )
        if hashed >= dense:
            lost.add((data, depth, ratio))
    assert lost == {("MNIST", 5, 8), ("BG-RAND", 5, 64)}
