"""What only a GPU can show; skipped where there is none. ``bench/gpu_check.sh`` runs it."""

import pytest
import torch
import torch.nn.functional as F

import fastnas
from fastnas.bilevel import METHODS, InnerSettings
from fastnas.ops import adam_step_, difference_, mixed_sum, perturb_, sgd_step_, vector_norm
from fastnas.spaces import make_space
from fastnas.supernet import BACKENDS, SupernetProblem, build_supernet, gradients
from tests.ops.test_mixed_sum import check_accuracy, make

pytestmark = pytest.mark.gpu

DTYPES = [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)]


def on_gpu(weights, branches, grad):
    return weights.cuda(), [branch.cuda() for branch in branches], grad.cuda()


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("size", [1, 7, 129, 1134, (1 << 20) + 13])
@pytest.mark.parametrize("branch_count", [1, 8, 300])
def test_mixed_sum_is_as_accurate_as_plain_pytorch(dtypes, size, branch_count):
    if size > 10_000 and branch_count > 8:
        size = 20_011
    check_accuracy(*on_gpu(*make((size,), branch_count, *dtypes)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixed_sum_keeps_layouts_and_repeats_to_the_bit(dtype):
    weights, branches, _ = on_gpu(*make((4, 6, 5, 7), 5, dtype))
    last = [branch.contiguous(memory_format=torch.channels_last) for branch in branches]
    out = mixed_sum(weights, last)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(out, mixed_sum(weights, branches))
    odd = [torch.cat([branch.flatten(), branch.flatten()])[1 : branch.numel() + 1] for branch in branches]
    leaf = weights.clone().requires_grad_()
    first, second = (torch.autograd.grad(mixed_sum(leaf, odd).float().sum(), leaf)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_mixed_sum_runs_on_the_current_stream():
    weights, branches, _ = on_gpu(*make((1 << 22,), 8, torch.float32))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = [branch * 3 for branch in branches]
        out = mixed_sum(weights, late)
    stream.synchronize()
    torch.testing.assert_close(out, sum(w * x for w, x in zip(weights, late, strict=True)))


def test_mixed_sum_can_be_captured_in_a_graph():
    weights, branches, _ = on_gpu(*make((1134,), 4, torch.float32))
    mixed_sum(weights, branches)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = mixed_sum(weights, branches)
    for branch in branches:
        branch.normal_()
    graph.replay()
    torch.testing.assert_close(out, sum(w * x for w, x in zip(weights, branches, strict=True)))


def test_ops_on_flat_vectors_do_what_they_do_on_the_cpu():
    """They have no CUDA kernels yet: plain PyTorch runs there, and no number visits the host."""
    for dtype in (torch.float32, torch.float64):
        vectors = [torch.randn(1134, dtype=dtype).abs() for _ in range(4)]
        results = []
        for device in ("cpu", "cuda"):
            w, grad, buffer, square = (vector.to(device) for vector in vectors)
            step = torch.zeros((), device=device)
            torch.cuda.set_sync_debug_mode("error")
            try:
                norm = sgd_step_(w, grad, buffer, 0.1, momentum=0.9, weight_decay=3e-4, clip=0.5)
                adam_step_(w, grad, buffer, square, step, 3e-4, weight_decay=1e-3)
                ahead = perturb_(torch.empty_like(w), w, grad, norm, 0.01, -1)
                difference_(ahead, grad, vector_norm(grad), 0.01)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            results.append([value.cpu() for value in (norm, w, buffer, square, step, ahead)])
        torch.testing.assert_close(results[0], results[1])


def supernet_and_batches(space, backend, device, dtype=torch.float32):
    torch.manual_seed(0)
    net = build_supernet(make_space(space, channels=4, layers=3), backend=backend, device=device, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    batches = [
        (
            torch.randn(4, 3, 16, 16, generator=generator).to(device, dtype),
            torch.randint(0, 10, (4,), generator=generator).to(device),
        )
        for _ in range(2)
    ]
    return net, batches


@pytest.mark.parametrize("space", ["darts", "nasbench201"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_supernets_agree_with_float64_on_the_cpu(space, backend):
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    exact, ((images, labels), _) = supernet_and_batches(space, "reference", "cpu", torch.float64)
    truth = gradients(F.cross_entropy(exact(images), labels), exact.weights, exact.alphas)
    net, ((images, labels), _) = supernet_and_batches(space, backend, "cuda")
    found = gradients(F.cross_entropy(net(images), labels), net.weights, net.alphas)
    for ours, exactly in zip(found, truth, strict=True):
        # One ReLU switch that rounding flips moves a gradient by up to 1e-3, on the CPU too.
        assert (ours.cpu().double() - exactly).norm() <= 1e-3 * exactly.norm()


@pytest.mark.parametrize("method", METHODS)
def test_a_hypergradient_leaves_no_trace(method):
    net, (train, val) = supernet_and_batches("darts", "fused", "cuda")
    before = [part.flat.clone() for part in (net.weights, net.alphas, net.running)]
    state = torch.cuda.get_rng_state()
    settings = InnerSettings(
        learning_rate=0.1, momentum_buffer=torch.randn_like(net.weights.flat), momentum=0.9
    )
    assert METHODS[method].hypergradient(SupernetProblem(net, train, val), settings).isfinite().all()
    after = [part.flat for part in (net.weights, net.alphas, net.running)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(state, torch.cuda.get_rng_state())


@pytest.mark.parametrize("space", ["darts", "nasbench201"])
def test_a_search_runs_and_resumes(space, tmp_path):
    options = {"channels": 4, "layers": 1, "images": 128, "batch_size": 16, "epochs": 2, "device": "cuda"}
    result = fastnas.search(space=space, out=tmp_path / "run", **options)
    assert all(alpha.isfinite().all() for alpha in result.alphas.values())
    again = fastnas.search(resume=tmp_path / "run")
    assert again.genotype == result.genotype
