"""What only a GPU can show; skipped where there is none. ``bench/gpu_check.sh`` runs it."""

import pytest
import torch
import torch.nn.functional as F

import fastnas
from fastnas.bilevel import METHODS, InnerSettings
from fastnas.data import Augment, Batches, Dataset
from fastnas.ops import (
    adam_step_,
    difference_,
    mixed_sum,
    neumann_step_,
    perturb_,
    sgd_step_,
    vector_norm,
    virtual_step_,
)
from fastnas.ops._vectors import triton_kernels
from fastnas.search import SearchStep
from fastnas.spaces import make_space
from fastnas.supernet import BACKENDS, Graphs, SupernetProblem, build_supernet, cuda_graphs, gradients
from fastnas.supernet.graphs import WARM_UP, CudaDevice
from tests.ops.test_mixed_sum import check_accuracy, make
from tests.ops.test_shared_pooling_device import assert_pooled_sum, pooled_sum, pooled_sum_arguments

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
    """And no number visits the host."""
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
        *others, _ = results[0]
        torch.testing.assert_close(others, results[1][:-1])
        # A difference magnifies the last digit of what it subtracts by |u| / (2 radius).
        magnified = 4 * torch.finfo(dtype).eps * vectors[1].norm().item() / (2 * 0.01)
        torch.testing.assert_close(results[0][-1], results[1][-1], rtol=1e-5, atol=5 * magnified)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0, 1, 7, 2048, 5003, (1 << 20) + 13])
@pytest.mark.parametrize("offset", [0, 1])
def test_ops_in_triton_do_what_they_do_on_the_cpu(offset, size, dtype):
    """Aligned and not; and no number visits the host once they are compiled."""
    assert triton_kernels("neumann") is not None
    vectors = torch.randn(4, size + offset, dtype=dtype)
    results = []
    for device in ("cpu", "cuda"):
        rate = torch.tensor(0.1, dtype=torch.float64, device=device)
        for debug in ("default", "error"):
            v, series, ahead, behind = (vector[offset:] for vector in vectors.to(device, copy=True))
            torch.cuda.set_sync_debug_mode(debug)
            try:
                norm = neumann_step_(v, series, ahead, behind, vector_norm(v), 0.01, rate)
                neumann_step_(v, series, ahead, behind, norm, 0.01, 1e-3)
                w = virtual_step_(ahead, behind, v, rate, momentum=0.9, weight_decay=3e-4)
                virtual_step_(w, behind, None, 0.1)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        results.append([value.cpu() for value in (norm, v, series, w)])
    (norm, *vectors), (other, *others) = results
    torch.testing.assert_close(vectors, others)
    torch.testing.assert_close(norm, other, rtol=4 * torch.finfo(dtype).eps, atol=0)  # float64, of v in dtype


def test_a_captured_neumann_step_follows_gamma_and_repeats_to_the_bit():
    start = torch.randn(4, (1 << 20) + 13, device="cuda")
    vectors, norm = start.clone(), vector_norm(start[0].clone())
    gamma = torch.tensor(0.1, dtype=torch.float64, device="cuda")
    neumann_step_(*vectors, norm, 0.01, gamma)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        new_norm = neumann_step_(*vectors, norm, 0.01, gamma)
    for value in (0.1, 0.025, 0.025):
        gamma.fill_(value)
        vectors.copy_(start)
        graph.replay()
        expected = start.clone()
        assert torch.equal(neumann_step_(*expected, norm, 0.01, gamma), new_norm)
        assert torch.equal(vectors, expected)


def test_a_captured_sgd_step_follows_the_learning_rate_and_repeats_to_the_bit():
    w, grad, buffer = (torch.randn((1 << 20) + 13, device="cuda") for _ in range(3))
    rate = torch.tensor(0.1, dtype=torch.float64, device="cuda")
    start = w.clone(), buffer.clone()

    def step():
        return sgd_step_(w, grad, buffer, rate, momentum=0.9, weight_decay=3e-4, clip=0.5)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        norm = step()
    for value in (0.1, 0.025, 0.025):
        rate.fill_(value)
        for part, before in zip((w, buffer), start, strict=True):
            part.copy_(before)
        graph.replay()
        replayed = w.clone(), buffer.clone(), norm.clone()
        for part, before in zip((w, buffer), start, strict=True):
            part.copy_(before)
        expected = sgd_step_(w, grad, buffer, value, momentum=0.9, weight_decay=3e-4, clip=0.5)
        assert all(torch.equal(a, b) for a, b in zip(replayed, (w, buffer, expected), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [5, 16, 64])
def test_pooling_and_normalised_sum(channels, dtype):
    arguments = pooled_sum_arguments(channels)
    x, weights, grad = (t.cuda() for t in arguments)
    first, second = (pooled_sum(x.to(dtype), weights, grad.to(dtype)) for _ in range(2))
    assert_pooled_sum(first, arguments)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


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


SOME = ("first-order", "darts", "amended", "idarts", "t1-t2")  # the others call the same oracles


@pytest.mark.parametrize("method", SOME)
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
    options["inner_steps"] = 1  # as many steps as batches: graphs are captured after some
    result = fastnas.search(space=space, out=tmp_path / "run", **options)
    assert all(alpha.isfinite().all() for alpha in result.alphas.values())
    again = fastnas.search(resume=tmp_path / "run")
    assert again.genotype == result.genotype


def skip_unless_repeatable(net, space):
    if space == "darts" and not net._fused:
        pytest.skip("the backward pass of torch's max_pool2d adds by atomics")


@pytest.mark.parametrize("space", ["darts", "nasbench201"])
@pytest.mark.parametrize("method", SOME)
def test_a_replayed_hypergradient_is_the_eager_one_to_the_bit(space, method):
    net, _ = supernet_and_batches(space, "fused", "cuda")
    skip_unless_repeatable(net, space)
    net.stages[0].append(torch.nn.Dropout(0.5))
    settings = InnerSettings(
        learning_rate=0.1, momentum_buffer=torch.randn_like(net.weights.flat), momentum=0.9
    )
    graphs = Graphs(CudaDevice("cuda"), warm_up=1)
    for i in range(4):
        batches = [(torch.randn(4, 3, 16, 16).cuda(), torch.randint(0, 10, (4,)).cuda()) for _ in range(2)]
        torch.cuda.manual_seed(i)
        torch.rand(i + 1, device="cuda")  # an offset other than 0
        state = torch.cuda.get_rng_state()
        before = [part.flat.clone() for part in (net.weights, net.alphas, net.running)]
        expected = METHODS[method].hypergradient(SupernetProblem(net, *batches), settings)
        found = METHODS[method].hypergradient(SupernetProblem(net, *batches, graphs=graphs), settings)
        assert torch.equal(found, expected)
        after = [part.flat for part in (net.weights, net.alphas, net.running)]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert torch.equal(state, torch.cuda.get_rng_state())
        net.weights.flat.add_(0.01 * torch.randn_like(net.weights.flat))
    assert (graphs.failure, len(graphs)) == (None, {"first-order": 1, "t1-t2": 2}.get(method, 3))


def search_step(space, method, graphs, precision=None):
    net, _ = supernet_and_batches(space, "fused", "cuda")
    settings = InnerSettings(0.1, 0.9, 3e-4)
    return SearchStep(net, METHODS[method], settings, graphs=graphs, precision=precision)


def endless_batches():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (64, 3, 16, 16), generator=generator, dtype=torch.uint8).cuda()
    labels = torch.randint(0, 10, (64,), generator=generator).cuda()
    dataset = Dataset("noise", images, labels, tuple(map(str, range(10))))
    return Batches(
        dataset, 4, mean=[0.5] * 3, std=[0.25] * 3, augment=Augment(crop_padding=2, flip=True, cutout=4),
        generator=torch.Generator("cuda").manual_seed(1),
    ).forever()  # fmt: skip


@pytest.mark.parametrize("space", ["darts", "nasbench201"])
@pytest.mark.parametrize("method", [*SOME, "reverse", "truncated-reverse"])
@pytest.mark.parametrize("graphed", [False, True])
def test_a_whole_step_never_waits_for_the_device(space, method, graphed):
    graphs = cuda_graphs("cuda") if graphed else None
    step, batches = search_step(space, method, graphs), endless_batches()
    for _ in range(WARM_UP + 16):  # also a whole pass of the batches
        step([next(batches), next(batches)], next(batches), 0.1)
    torch.cuda.synchronize()
    reserved = torch.cuda.memory_reserved()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for i in range(8):
            report = step([next(batches), next(batches)], next(batches), 0.1 / (i + 1))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert report.losses.isfinite().all()
    if graphs is not None:
        assert graphs.failure is None
        assert len(graphs) == 1 + {"first-order": 1, "t1-t2": 2}.get(method, 3)
        assert torch.cuda.memory_reserved() == reserved


@pytest.mark.parametrize("space", ["darts", "nasbench201"])
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("recompute", [False, True])
def test_replayed_steps_are_the_eager_ones_to_the_bit(space, precision, recompute):
    results = []
    for graphs in (None, cuda_graphs("cuda")):
        step, batches = search_step(space, "idarts", graphs, precision), endless_batches()
        step.net.recompute = recompute
        skip_unless_repeatable(step.net, space)
        reports = [
            step([next(batches), next(batches)], next(batches), 0.1 / (i + 1)) for i in range(WARM_UP + 4)
        ]
        net = step.net
        results.append([net.weights.flat, net.alphas.flat, net.running.flat])
        results[-1] += [torch.stack([report.losses for report in reports])]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_failed_capture_leaves_a_device_that_works():
    net, (train, val) = supernet_and_batches("nasbench201", "fused", "cuda")
    net.stages[0].append(torch.nn.Dropout(0.5))  # eager drawing must work afterwards, too
    said = []
    graphs = Graphs(CudaDevice("cuda"), warm_up=1, say=said.append)

    def loss(logits, labels):
        value = F.cross_entropy(logits, labels)
        return value * (1 if value.item() > 0 else 2)

    for i in range(4):
        SupernetProblem(net, train, val, graphs=graphs).val_grad_alpha()  # captured first
        grad = SupernetProblem(net, train, val, loss, graphs=graphs).train_grad_w()
        assert grad.isfinite().all()
        assert len(said) == (i > 0)
    sentence = "train_grad_w could not be captured in a CUDA graph, so this run goes on without graphs: "
    assert said[0].startswith(sentence)
    assert len(graphs) == 0
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    torch.rand(3, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    others = Graphs(CudaDevice("cuda"), warm_up=1)
    for _ in range(3):
        SupernetProblem(net, train, val, graphs=others).train_grad_w()
    assert (others.failure, len(others)) == (None, 1)


@pytest.mark.parametrize("space", ["darts", "nasbench201"])
def test_a_search_with_graphs_is_the_search_without(space, tmp_path):
    options = {"channels": 4, "layers": 1, "images": 128, "batch_size": 16, "epochs": 3, "device": "cuda"}
    options["inner_steps"] = 1
    results = [
        fastnas.search(space=space, out=tmp_path / graphs, graphs=graphs, **options)
        for graphs in ("on", "off")
    ]
    assert all(torch.equal(results[0].alphas[name], results[1].alphas[name]) for name in results[0].alphas)
