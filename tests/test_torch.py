"""The PyTorch layers against their dense twins, and the files they are saved to."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="the extra hashinfer[torch] is not installed")
pytest.importorskip("onnxscript", reason="the extra hashinfer[torch] is not installed")
ort = pytest.importorskip("onnxruntime")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import hashinfer.torch as ht  # noqa: E402
from hashinfer.errors import ModelError, SchemeError  # noqa: E402
from hashinfer.torch.expand import expand  # noqa: E402

SCHEMES = ["dyadic", "xxh32"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def reference_w(layer: Any) -> Tensor:
    """W from the scheme's NumPy reference, with the layer's dtype."""
    w = layer.weight_vector.detach()
    return torch.from_numpy(layer.scheme.expand(w.double().numpy())).to(w.dtype)


def folded(layer: Any, grad_w: Tensor) -> Tensor:
    """The weight vector's gradient, cell by cell in float64, from that of W."""
    bucket, sign = layer.scheme.table()
    out = np.zeros(layer.scheme.buckets)
    np.add.at(out, bucket, sign * grad_w.double().numpy())
    return torch.from_numpy(out)


def check_against(layer: Any, dense: Any, x: Tensor, to_w: Any) -> None:
    """Outputs and gradients of `layer` and of `dense`, whose weight holds the same W in its own layout."""
    inputs = [x.clone().requires_grad_(x.is_floating_point()) for _ in range(2)]
    y, expected = layer(inputs[0]), dense(inputs[1])
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(y.dtype, 2e-2)
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)
    slope = torch.randn(y.shape, dtype=torch.float64).to(y.dtype)
    y.backward(slope)
    expected.backward(slope)
    if x.is_floating_point():
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=tolerance, atol=tolerance)
    grad = folded(layer, to_w(dense.weight.grad))
    torch.testing.assert_close(
        layer.weight_vector.grad.double(), grad, rtol=10 * tolerance, atol=10 * tolerance * float(grad.abs().max())
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("leading", [(7,), (2, 3), ()])
def test_linear_equals_dense(scheme, dtype, leading):
    torch.manual_seed(0)
    layer = ht.HashedLinear(40, 24, scheme=scheme, buckets=48, seed=5, dtype=dtype)
    dense = nn.Linear(40, 24, dtype=dtype)
    with torch.no_grad():
        dense.weight.copy_(reference_w(layer).t())
        dense.bias.copy_(layer.bias)
    assert torch.equal(layer.weight, dense.weight)
    check_against(layer, dense, torch.randn(*leading, 40).to(dtype), lambda g: g.t())


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3},
        {"kernel_size": (3, 2), "stride": 2, "padding": (1, 0), "dilation": (1, 2)},
        {"kernel_size": 3, "groups": 2, "bias": False},
        {"kernel_size": 3, "padding": "same", "dilation": 2},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect", "stride": 2},
        {"kernel_size": 3, "padding": "same", "padding_mode": "circular"},
    ],
    ids=str,
)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_conv_equals_dense(scheme, options):
    torch.manual_seed(0)
    layer = ht.HashedConv2d(4, 6, **options, scheme=scheme, buckets=16, seed=9, dtype=torch.float64)
    dense = nn.Conv2d(4, 6, **options, dtype=torch.float64)
    with torch.no_grad():
        dense.weight.copy_(reference_w(layer).t().reshape(dense.weight.shape))
        if dense.bias is not None:
            dense.bias.copy_(layer.bias)
    assert torch.equal(layer.weight, dense.weight)
    check_against(layer, dense, torch.randn(2, 4, 9, 8, dtype=torch.float64), lambda g: g.reshape(6, -1).t())


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("padding_idx", [None, 3, -1])
def test_embedding_equals_dense(block, padding_idx):
    torch.manual_seed(0)
    layer = ht.HashedEmbedding(30, 10, padding_idx, buckets=20, block=block, seed=1, dtype=torch.float64)
    dense = nn.Embedding(30, 10, padding_idx, dtype=torch.float64)
    assert layer.padding_idx == dense.padding_idx
    with torch.no_grad():
        dense.weight.copy_(reference_w(layer))
        if padding_idx is not None:
            dense.weight[padding_idx] = 0
    check_against(layer, dense, torch.tensor([[3, 29, 0], [3, 3, 11]]), lambda g: g)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradcheck(scheme):
    x = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)
    layer = ht.HashedLinear(9, 5, scheme=scheme, buckets=8, seed=2, dtype=torch.float64)
    w = layer.weight_vector.detach().requires_grad_()

    def call(x: Tensor, w: Tensor) -> Tensor:
        return torch.tanh(x @ expand(w, layer.scheme))

    assert torch.autograd.gradcheck(call, (x, w))
    assert torch.autograd.gradgradcheck(call, (x, w))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_operators_meet_their_contract(scheme):
    layer = ht.HashedLinear(9, 5, scheme=scheme, buckets=8, seed=2)
    w = layer.weight_vector.detach().requires_grad_()
    operator = getattr(torch.ops.hashinfer, f"expand_{scheme}").default
    torch.library.opcheck(operator, (w, 2, 9, 5, 8 if scheme == "dyadic" else 1))
    fold = getattr(torch.ops.hashinfer, f"fold_{scheme}").default
    torch.library.opcheck(fold, (torch.randn(9, 5, requires_grad=True), 8, 2, 8 if scheme == "dyadic" else 1))


def test_half_precision_gradient_is_summed_in_float32():
    layer = ht.HashedLinear(512, 64, False, scheme="xxh32", buckets=2, dtype=torch.float16)
    layer.expand().backward(torch.full((512, 64), 0.1, dtype=torch.float16))
    exact = folded(layer, torch.full((512, 64), 0.1, dtype=torch.float16))
    torch.testing.assert_close(layer.weight_vector.grad.double(), exact, rtol=1e-3, atol=0.1)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_state_dict_round_trip_with_another_seed(scheme):
    old = ht.HashedLinear(40, 24, scheme=scheme, buckets=48, seed=5)
    new = ht.HashedLinear(40, 24, scheme=scheme, buckets=48, seed=6)
    state = old.state_dict()
    assert set(state) == {"weight_vector", "bias", "seed"}
    assert state["seed"].dtype == torch.int64
    assert state["seed"].shape == ()
    x = torch.randn(3, 40)
    assert not torch.equal(old.expand().abs(), new.expand().abs())
    new.load_state_dict(state)
    assert new.scheme == old.scheme
    assert torch.equal(old(x), new(x))
    assert torch.equal(copy.deepcopy(new)(x), new(x))


def test_state_dict_of_another_length_or_with_a_bad_seed():
    layer = ht.HashedLinear(40, 24, buckets=64, seed=5)
    with pytest.raises(RuntimeError, match="size mismatch for weight_vector"):
        layer.load_state_dict(ht.HashedLinear(40, 24, buckets=32, width=32, seed=4).state_dict())
    assert layer.scheme.seed == 5
    with pytest.raises(RuntimeError, match=r"0\.seed is -1; expected an integer from 0 to 4294967295"):
        nn.Sequential(layer).load_state_dict(
            {f"0.{k}": v for k, v in (layer.state_dict() | {"seed": torch.tensor(-1)}).items()}
        )
    assert layer.scheme.seed == 5
    assert int(layer.seed) == 5


@pytest.mark.parametrize("scheme", SCHEMES)
def test_initial_variance_is_the_dense_layers(scheme):
    def var(x: Tensor) -> float:
        return float(x.detach().var())

    torch.manual_seed(0)
    hashed, dense = ht.HashedLinear(256, 1024, scheme=scheme), nn.Linear(256, 1024)
    assert var(hashed.weight) == pytest.approx(var(dense.weight), rel=0.05)
    assert var(hashed.bias) == pytest.approx(var(dense.bias), rel=0.15)
    assert float(hashed.weight.detach().abs().max()) <= 1 / 16
    hashed, dense = ht.HashedConv2d(64, 128, 3, scheme=scheme), nn.Conv2d(64, 128, 3)
    assert var(hashed.weight) == pytest.approx(var(dense.weight), rel=0.1)
    assert var(ht.HashedEmbedding(1000, 300).weight) == pytest.approx(1, rel=0.1)


def test_sizes():
    assert ht.HashedLinear(784, 1000, compression=8).weight_vector.shape == (97280,)
    assert ht.HashedLinear(784, 1000, scheme="xxh32", compression=8).weight_vector.shape == (98000,)
    assert ht.HashedConv2d(64, 32, 3, buckets=600, width=64).weight_vector.shape == (576,)
    assert ht.HashedEmbedding(1000, 16).weight_vector.shape == (250,)
    assert "scheme='dyadic', buckets=97280" in repr(ht.HashedLinear(784, 1000, compression=8))
    assert "padding=(1, 1)" in repr(ht.HashedConv2d(16, 16, 3, padding=1))
    assert "padding_idx=0" in repr(ht.HashedEmbedding(100, 64, 0))


def test_more_columns_than_buckets_warns_for_dyadic_only():
    with pytest.warns(UserWarning, match="64 outputs over 32 buckets") as record:
        ht.HashedLinear(32, 64, buckets=32)
    assert record[0].filename == __file__
    with pytest.warns(UserWarning, match="64 outputs over 8 buckets"):
        ht.HashedConv2d(8, 64, 1, buckets=8)
    ht.HashedLinear(32, 64, buckets=32, scheme="xxh32")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "md5"}, "scheme 'md5'"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"compression": 0}, "compression is 0"),
        ({"compression": float("nan")}, "compression is nan"),
        ({"compression": 1e9}, "budget of 0"),
        ({"buckets": 0}, "budget of 0"),
        ({"width": 24}, "width is 24"),
        ({"block": 4}, "block is 4 with scheme 'dyadic'"),
        ({"scheme": "xxh32", "width": 16}, "width is 16 with scheme 'xxh32'"),
        ({"scheme": "xxh32", "block": 0}, "block is 0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(SchemeError, match=message):
        ht.HashedLinear(64, 64, **options)


def test_bad_arguments_of_the_dense_twin():
    with pytest.raises(ValueError, match="groups"):
        ht.HashedConv2d(3, 4, 3, groups=2)
    with pytest.raises(ValueError, match="padding_idx is 30"):
        ht.HashedEmbedding(30, 10, 30, buckets=8)


def test_device_and_dtype():
    layer = ht.HashedLinear(64, 64, buckets=64, device="meta", dtype=torch.float16)
    assert layer(torch.empty(3, 64, device="meta", dtype=torch.float16)).shape == (3, 64)
    assert ht.HashedLinear(64, 64, buckets=64).double().half().seed.dtype == torch.int64


def test_autocast_narrows_the_output_as_in_linear():
    with torch.autocast("cpu", torch.bfloat16):
        assert ht.HashedLinear(64, 64, buckets=64)(torch.randn(3, 64)).dtype == torch.bfloat16


def test_compiles_without_a_graph_break():
    layer = ht.HashedLinear(64, 64, buckets=64)
    x = torch.randn(3, 64)
    torch.testing.assert_close(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), layer(x))


def test_training_learns():
    torch.manual_seed(0)
    x = torch.randn(512, 16)
    target = x[:, :4].sum(1, keepdim=True).relu()
    net = nn.Sequential(
        ht.HashedLinear(16, 64, buckets=128, seed=1), nn.ReLU(), ht.HashedLinear(64, 1, buckets=64, seed=2)
    )
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = functional.mse_loss(net(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 20


# Saving.


class Mlp(nn.Module):
    def __init__(self, scheme: str = "dyadic") -> None:
        super().__init__()
        self.hidden = ht.HashedLinear(28 * 28, 128, buckets=2048, scheme=scheme, seed=1)
        self.out = ht.HashedLinear(128, 10, buckets=128, scheme=scheme, seed=2)
        self.drop = nn.Dropout(0.5)

    def forward(self, image: Tensor) -> Tensor:
        x = image.to(torch.float32) * (1 / 255)
        return self.out(self.drop(torch.relu(self.hidden(x.flatten(1)))))


class Cnn(nn.Module):
    def __init__(self, scheme: str = "dyadic") -> None:
        super().__init__()
        self.net = nn.Sequential(
            ht.HashedConv2d(3, 16, 3, padding=1, scheme=scheme, buckets=64, seed=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            ht.HashedConv2d(16, 16, 3, stride=2, groups=2, scheme=scheme, buckets=64, seed=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            ht.HashedLinear(16, 10, scheme=scheme, buckets=32, seed=3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Bag(nn.Module):
    def __init__(self, padding_idx: int | None = None) -> None:
        super().__init__()
        self.table = ht.HashedEmbedding(200, 16, padding_idx, buckets=64, block=4, seed=7)
        self.norm = nn.LayerNorm(16)
        self.out = ht.HashedLinear(16, 3, buckets=16)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.norm(self.table(ids).mean(1)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = ht.HashedEmbedding(50, 32, buckets=128, seed=1)
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv = ht.HashedLinear(32, 96, buckets=128, seed=2)
        self.proj = ht.HashedLinear(32, 32, buckets=64, seed=3)
        self.up = ht.HashedLinear(32, 64, buckets=64, seed=4)
        self.down = ht.HashedLinear(64, 32, buckets=64, seed=5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        q, k, v = (t.unflatten(-1, (4, 8)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        heads = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(heads.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Tied(nn.Module):
    """One table and one layer, each used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = ht.HashedEmbedding(50, 16, buckets=64, seed=1)
        self.layer = ht.HashedLinear(16, 16, buckets=32, seed=2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.layer(torch.relu(self.layer(self.table(ids)))) @ self.table.weight.t()


def ids(*shape: int) -> Tensor:
    return torch.randint(0, 50, shape)


def ops(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def run(path: Path, *inputs: Tensor) -> list[Any]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    return session.run(None, feed)


CASES = {
    "mlp-dyadic": (lambda: Mlp("dyadic"), lambda n: torch.randint(0, 256, (n, 28, 28), dtype=torch.uint8)),
    "mlp-xxh32": (lambda: Mlp("xxh32"), lambda n: torch.randint(0, 256, (n, 28, 28), dtype=torch.uint8)),
    "cnn-dyadic": (lambda: Cnn("dyadic"), lambda n: torch.randn(n, 3, 14, 14)),
    "cnn-xxh32": (lambda: Cnn("xxh32"), lambda n: torch.randn(n, 3, 14, 14)),
    "bag": (Bag, lambda n: ids(n, 6)),
    "bag-padded": (lambda: Bag(3), lambda n: ids(n, 6)),
    "block": (Block, lambda n: ids(n, 5)),
    "tied": (Tied, lambda n: ids(n, 5)),
    "sequential": (
        lambda: nn.Sequential(
            ht.HashedLinear(20, 40, False, buckets=64), nn.GELU(), nn.Dropout(), ht.HashedLinear(40, 4, buckets=40)
        ),
        lambda n: torch.randn(n, 20),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_saved_file_computes_what_the_module_computes(case, tmp_path, capfd):
    torch.manual_seed(0)
    make, sample = CASES[case]
    net = make()
    net.train()
    path = tmp_path / "net.hnet"
    ht.save(net, sample(1), path, input_names=["x"], output_names=["y"])
    assert net.training
    assert all(m.training for m in net.modules())
    assert [p.name for p in tmp_path.iterdir()] == ["net.hnet"]
    assert capfd.readouterr() == ("", "")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert model.producer_name == "hashinfer"
    assert model.graph.input[0].name == "x"
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert str(Path.cwd()).encode() not in path.read_bytes()
    assert b"test_torch" not in path.read_bytes()
    net.eval()
    for n in (1, 5):
        x = sample(n)
        np.testing.assert_allclose(run(path, x)[0], net(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_exact_nodes(tmp_path):
    path = tmp_path / "net.hnet"
    ht.save(Mlp(), torch.zeros(2, 28, 28, dtype=torch.uint8), path)
    hashed = ["ExpandDyadic", "MatMul", "Add"]
    assert ops(path) == ["Cast", "Mul", "Reshape", *hashed, "Relu", *hashed]
    ht.save(ht.HashedConv2d(3, 8, 3, scheme="xxh32"), torch.zeros(2, 3, 8, 8), path)
    assert ops(path) == ["ExpandXxh32", "Transpose", "Reshape", "Conv"]
    ht.save(ht.HashedEmbedding(100, 64), ids(2, 3), path)
    assert ops(path) == ["ExpandXxh32", "Gather"]
    ht.save(ht.HashedLinear(64, 8, False, buckets=64), torch.zeros(2, 5, 64), path)
    assert ops(path) == ["ExpandDyadic", "MatMul"]
    model = onnx.load(path)
    attributes = {a.name: a.i for a in model.graph.node[0].attribute}
    assert attributes == {"seed": 0, "rows": 64, "cols": 8, "width": 64}
    assert [(i.name, i.data_type, list(i.dims)) for i in model.graph.initializer] == [
        ("weight_vector", onnx.TensorProto.FLOAT, [64])
    ]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_w_is_bit_identical_in_onnxruntime(scheme, tmp_path):
    class Bare(ht.HashedLinear):
        def forward(self, x: Tensor) -> Tensor:
            return self.expand() + x * 0

    layer = Bare(130, 70, scheme=scheme, buckets=1000, seed=123456789)
    ht.save(layer, torch.zeros(()), tmp_path / "w.hnet", dynamic_batch=False)
    assert np.array_equal(run(tmp_path / "w.hnet", torch.zeros(()))[0], reference_w(layer).numpy())


def test_loaded_seed_is_the_one_saved(tmp_path):
    old, new = (ht.HashedLinear(64, 8, buckets=64, seed=s) for s in (77, 1))
    new.load_state_dict(old.state_dict())
    x = torch.randn(3, 64)
    ht.save(new, x, tmp_path / "net.hnet")
    np.testing.assert_allclose(run(tmp_path / "net.hnet", x)[0], old(x).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_opset_batch_and_doc(tmp_path):
    path = tmp_path / "net.hnet"
    net = ht.HashedLinear(64, 8, buckets=64)
    ht.save(net, torch.zeros(3, 64), path, dynamic_batch=False, opset=18, doc_string="a note")
    model = onnx.load(path)
    assert {o.domain: o.version for o in model.opset_import} == {"": 18, "ai.hashinfer": 1}
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 3
    assert model.doc_string == "a note"


def test_two_inputs(tmp_path):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = (ht.HashedLinear(n, 8, buckets=32, seed=n) for n in (16, 24))

        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return self.left(a) + self.right(b), self.left(a)

    net = Two()
    ht.save(net, (torch.zeros(1, 16), torch.zeros(1, 24)), tmp_path / "net.hnet", output_names=["sum", "left"])
    a, b = torch.randn(4, 16), torch.randn(4, 24)
    for got, expected in zip(run(tmp_path / "net.hnet", a, b), net(a, b), strict=True):
        np.testing.assert_allclose(got, expected.detach().numpy(), rtol=1e-5, atol=1e-6)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = ht.HashedLinear(30, 10, buckets=32)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else -self.layer(x)


class FixedBatch(Branching):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).reshape(3, 10)


@pytest.mark.parametrize("make", [Branching, FixedBatch, lambda: ht.HashedLinear(30, 10, buckets=32).half()])
def test_failed_save_leaves_the_old_file(make, tmp_path, capfd):
    path = tmp_path / "net.hnet"
    path.write_bytes(b"old")
    net = make()
    dtype = next(net.parameters()).dtype
    with pytest.raises(ModelError, match=r"cannot be exported|expected torch\.float32"):
        ht.save(net, torch.zeros(3, 30, dtype=dtype), path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["net.hnet"]
    assert net.training
    assert capfd.readouterr() == ("", "")


def test_import_without_torch_says_what_to_install():
    code = "import sys; sys.modules['torch'] = None\ntry:\n  import hashinfer.torch\nexcept ImportError as e: print(e)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'hashinfer[torch]'" in done.stdout
