"""Products of matrices by oneDNN equal MKL's, and torch does not take oneDNN for them by itself."""

import pytest
import torch
from torch import nn

from pallava import matmul

flags = torch.backends.mkldnn.flags


@pytest.fixture
def onednn(monkeypatch):
    """Have oneDNN multiply, whoever made this CPU."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("a build of torch without oneDNN")
    monkeypatch.setattr(matmul, "_libraries", [])
    matmul.replace_kernels()


def uses_onednn(capfd, compute) -> bool:
    capfd.readouterr()
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        compute()
    return "onednn_verbose" in capfd.readouterr().out


LAYOUTS = {
    "rows": lambda m: m,
    "columns": lambda m: m.t().contiguous().t(),
    "every second": lambda m: m.repeat_interleave(2, 1)[:, ::2],
    "shifted": lambda m: nn.functional.pad(m, (1, 0))[:, 1:],
}


@pytest.mark.parametrize("left", LAYOUTS)
@pytest.mark.parametrize("right", LAYOUTS)
@pytest.mark.parametrize(("rows", "inner", "columns"), [(300, 64, 200), (700, 300, 20), (20, 300, 700), (1, 2048, 600)])
def test_products_are_right(onednn, left, right, rows, inner, columns):
    torch.manual_seed(0)
    a, b = LAYOUTS[left](torch.randn(rows, inner)), LAYOUTS[right](torch.randn(inner, columns))
    near = {"rtol": 0, "atol": 1e-6 * inner}  # as many products of about 1, each sum rounded
    found, exact = torch.mm(a, b), (a.double() @ b.double()).float()
    torch.testing.assert_close(found, exact, **near)
    assert found.is_contiguous()
    bias = torch.randn(columns)
    torch.testing.assert_close(torch.addmm(bias, a, b), exact + bias, **near)


def test_gradients_equal_those_of_mkl(onednn, capfd):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(192, 640), nn.GELU(), nn.Linear(640, 96, bias=False))
    tokens = torch.randn(4, 160, 192, requires_grad=True)

    def gradients():
        loss = layers(tokens).square().mean()
        return loss, *torch.autograd.grad(loss, [tokens, *layers.parameters()])

    assert uses_onednn(capfd, gradients)
    ours = gradients()
    with flags(enabled=False):
        assert not uses_onednn(capfd, gradients)
        expected = gradients()
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
        assert one.stride() == other.stride()


@pytest.mark.parametrize(
    "product",
    [
        lambda a: torch.mm(a, a),
        lambda a: torch.mm(a[0], a.t()),
        lambda a: torch.mm(a, a.t().double()),
        lambda a: torch.addmm(a, a, a.t()),
        lambda a: torch.addmm(a[0, :3], a, a.t()),
    ],
)
def test_refuses_what_torch_refuses(onednn, product):
    with pytest.raises(RuntimeError):
        product(torch.randn(300, 200))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_other_types_and_small_products_are_torch_s(onednn, dtype):
    a = torch.randint(-3, 3, (128, 128))
    expected = a.double() @ a.double()
    assert torch.equal(torch.mm(a.to(dtype), a.to(dtype)).double(), expected)
    assert torch.equal(torch.addmm(a, a, a, beta=2, alpha=3), 2 * a + 3 * expected.long())
    assert torch.mm(torch.ones(0, 5), torch.ones(5, 7)).shape == (0, 7)
    assert torch.equal(torch.mm(torch.ones(2, 3), torch.ones(3, 4)), torch.full((2, 4), 3.0))


@pytest.mark.parametrize(
    ("maker", "capability"), [("GenuineIntel", "AVX512"), ("AuthenticAMD", "AVX2"), (None, "AVX512")]
)
def test_leaves_other_cpus_alone(monkeypatch, tmp_path, maker, capability):
    info = tmp_path / "cpuinfo"
    if maker:
        info.write_text(f"vendor_id\t: {maker}\n")
    monkeypatch.setattr(matmul, "_CPU_INFO", info)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    monkeypatch.setattr(matmul, "_libraries", [])
    assert not matmul.use_onednn.__wrapped__()
    assert not matmul._libraries


def test_still_needed(capfd):
    """Where this fails, torch takes oneDNN by itself: see whether it does on a CPU by AMD, and delete the module."""
    matrix = torch.randn(512, 512)
    with flags(enabled=True):
        assert not uses_onednn(capfd, lambda: torch.mm(matrix, matrix, out=torch.empty(512, 512)))
