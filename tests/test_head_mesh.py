"""A head sharded over data and vocabulary gives what it gives on one device, and no logits cross the vocabulary axis."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxgrad as jg

N, C, D, BLOCK_SIZE = 8, 52, 6, 5
RNG = np.random.default_rng(0)
E, W, B = (RNG.normal(size=shape).astype(np.float32) for shape in ((N, D), (C, D), (C,)))
ALONG = tuple(RNG.normal(size=x.shape).astype(np.float32) for x in (E, W, B))
IDS = RNG.integers(0, C, N).astype(np.int32)
SOFT = np.exp(RNG.normal(size=(N, C))).astype(np.float32)
WHERE = np.arange(N) % 3 != 1


def results(e, w, b, targets, where, along, *, vocab_axis=None):
    """Losses, gradient, and the product of the Hessian with `along` in two orders."""
    losses = lambda e, w, b: jg.linear_cross_entropy(e, w, targets, bias=b, where=where, block_size=BLOCK_SIZE, vocab_axis=vocab_axis)
    total = lambda x: losses(*x).sum()
    grad, x = jax.grad(total), (e, w, b)
    inner = lambda x: sum((a * b).sum() for a, b in zip(grad(x), along, strict=True))
    products = jax.jvp(grad, (x,), (along,))[1], jax.grad(inner)(x)
    return losses(*x), grad(x), products


def assert_same(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), found, expected)


@pytest.mark.parametrize(
    ("axis_type", "data", "vocab", "targets"),
    [
        (AxisType.Auto, "data", "vocab", IDS),
        (AxisType.Explicit, "data", "vocab", SOFT),
        (AxisType.Auto, None, "vocab", SOFT),
        (AxisType.Explicit, None, "vocab", IDS),
        (AxisType.Auto, "data", None, IDS),
    ],
)
def test_sharded_arrays_under_jit(axis_type, data, vocab, targets):
    mesh = jax.make_mesh((2, 4), ("data", "vocab"), axis_types=(axis_type,) * 2)
    specs = P(data), P(vocab), P(vocab), P(data) if targets.ndim == 1 else P(data, vocab), P(data)
    with jax.set_mesh(mesh):
        put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
        given = [put(x, spec) for x, spec in zip((E, W, B, targets, WHERE), specs, strict=True)]
        along = tuple(put(x, spec) for x, spec in zip(ALONG, specs, strict=False))
        found = jax.jit(results, static_argnames="vocab_axis")(*given, along, vocab_axis=vocab)
    assert_same(found, jax.jit(results)(E, W, B, targets, WHERE, ALONG))


@pytest.mark.parametrize("targets", [IDS, SOFT], ids=["ids", "distributions"])
def test_shares_under_shard_map(targets):
    mesh = jax.make_mesh((2, 2), ("data", "vocab"), axis_types=(AxisType.Auto,) * 2)
    specs = P("data"), P("vocab"), P("vocab"), P("data") if targets.ndim == 1 else P("data", "vocab"), P("data")
    losses = lambda e, w, b, y, where: jg.linear_cross_entropy(e, w, y, bias=b, where=where, vocab_axis="vocab")
    sharded = jax.shard_map(losses, mesh=mesh, in_specs=specs, out_specs=P("data"))
    plain = lambda e, w, b, y, where: jg.linear_cross_entropy(e, w, y, bias=b, where=where)

    def both(f, x, along, *rest):
        grad = jax.grad(lambda x: f(*x, *rest).sum())
        return f(*x, *rest), grad(x), jax.jvp(grad, (x,), (along,))[1]

    given = (E, W, B), ALONG, targets, WHERE
    found, expected = jax.jit(lambda *given: (both(sharded, *given), both(plain, *given)))(*given)
    assert_same(found, expected)


def every_function(e, w, ids, teacher, sum_of):
    """What there is for a large head beside the cross-entropy, and gradients in what all devices share; `sum_of` adds up over them."""
    given, along, weights = (e, w, ids), jg.HeadVector(head=w), {"weights": jax.numpy.ones_like(e[:, 0]), "block_size": BLOCK_SIZE}
    few = ids[:, None], jax.numpy.ones_like(e[:, :1])
    losses = {
        "logsumexp": lambda w: jg.linear_logsumexp(e, w, block_size=BLOCK_SIZE),
        "few": lambda w: jg.linear_sparse_forward_kl(e, w, *few, block_size=BLOCK_SIZE),
        "kl": lambda w: jg.linear_kl_divergence(e, w, e, teacher, block_size=BLOCK_SIZE),
    }
    summary = jg.linear_log_probs(e, w, ids=few[0], top_k=2, block_size=BLOCK_SIZE)
    rows = {name: loss(w) for name, loss in losses.items()} | {"summary": [summary.logsumexp, summary.entropy, summary.of_ids, summary.top]}
    rows["norms"] = jg.linear_cross_entropy_grad_norms(*given, block_size=BLOCK_SIZE)
    rows["by features"] = jg.linear_cross_entropy_hvp(*given, jg.HeadVector(features=e, head=w), **weights).features
    shared = {name: jax.grad(lambda w, loss=loss: sum_of(loss(w).sum()))(w) for name, loss in losses.items()}
    shared["products"] = [sum_of(f(*given, along, **weights).head) for f in (jg.linear_cross_entropy_hvp, jg.linear_cross_entropy_ggn_product)]
    shared["diagonal"] = sum_of(jg.linear_cross_entropy_ggn_diagonal(*given, **weights).head)
    return rows, shared


def test_every_function_under_shard_map_over_examples():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    sharded = lambda *given: every_function(*given, lambda x: jax.lax.psum(x, "data"))
    sharded = jax.shard_map(sharded, mesh=mesh, in_specs=(P("data"), P(), P("data"), P()), out_specs=(P("data"), P()))
    found, expected = jax.jit(lambda *given: (sharded(*given), every_function(*given, lambda x: x)))(E, W, IDS, np.float32(0.5) * W[::-1])
    assert_same(found, expected)


def collectives(compiled):
    """The shapes that cross a mesh axis in a compiled program, by operation."""
    found = re.findall(r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast)(?:-start)?\(", compiled.as_text())
    return {(operation, tuple(int(n) for n in dims.split(",") if n)) for shapes, operation in found for dims in re.findall(r"\[([\d,]*)\]", shapes)}


@pytest.mark.parametrize("data", [None, "data"])
def test_only_sums_for_each_example_and_the_gradient_of_features_cross_the_vocabulary(data):
    mesh = jax.make_mesh((2, 4), ("data", "vocab"), axis_types=(AxisType.Auto,) * 2)
    specs = P(data), P("vocab"), P("vocab"), P(data), P(data)
    with jax.set_mesh(mesh):
        put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
        given = [put(x, spec) for x, spec in zip((E, W, B, IDS, WHERE), specs, strict=True)]
        along = tuple(put(x, spec) for x, spec in zip(ALONG, specs, strict=False))
        found = collectives(jax.jit(results, static_argnames="vocab_axis").lower(*given, along, vocab_axis="vocab").compile())
        gathered = collectives(jax.jit(results).lower(*given, along).compile())
    rows = N if data is None else N // 2
    allowed = {(), (rows,), (rows, D), (D, rows)}
    if data is not None:  # the gradient of its share of the head is added up over the examples
        allowed |= {(BLOCK_SIZE, D), (D, BLOCK_SIZE), (BLOCK_SIZE,), (C // 4, D), (C // 4,)}
    assert {operation for operation, _ in found} == {"all-reduce"}
    assert {shape for _, shape in found} <= allowed
    assert not {shape for _, shape in gathered} <= allowed  # without the axis, the head itself crosses: the test can see it


def test_a_block_is_no_larger_than_the_share_of_a_device():
    with jax.set_mesh(jax.make_mesh((4,), ("vocab",), axis_types=(AxisType.Auto,))):
        found = jax.jit(lambda e, w: [jg.linear_cross_entropy(e, w, IDS, block_size=size, vocab_axis="vocab") for size in (None, C)])(E, W)
    assert_same(found, [jg.cross_entropy(E @ W.T, IDS)] * 2)


def test_classes_must_divide_among_the_devices():
    with jax.set_mesh(jax.make_mesh((4,), ("vocab",), axis_types=(AxisType.Auto,))), pytest.raises(ValueError, match="head: expected the 53 classes to divide"):
        jg.linear_cross_entropy(E, np.zeros((53, D), np.float32), IDS, vocab_axis="vocab")


PROCESS = """
import sys
from pathlib import Path
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
port, process = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(process))
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from test_head_mesh import ALONG, B, E, IDS, W, WHERE, assert_same, results

mesh = jax.make_mesh((2, 2), ("data", "vocab"), axis_types=(AxisType.Auto,) * 2, devices=np.array(jax.devices()).reshape(2, 2).T.ravel())
specs = P("data"), P("vocab"), P("vocab"), P("data"), P("data")
put = lambda x, spec: jax.make_array_from_callback(x.shape, NamedSharding(mesh, spec), lambda index: x[index])
expected = jax.tree.map(np.asarray, jax.jit(results)(E, W, B, IDS, WHERE, ALONG))
with jax.set_mesh(mesh):
    given = [put(x, spec) for x, spec in zip((E, W, B, IDS, WHERE), specs, strict=True)]
    along = tuple(put(x, spec) for x, spec in zip(ALONG, specs, strict=False))
    found = jax.jit(results, static_argnames="vocab_axis")(*given, along, vocab_axis="vocab")
    assert_same(process_allgather(found, tiled=True), expected)
    print("same", {device.process_index for device in mesh.devices[0]})
"""


def test_two_processes_share_the_vocabulary():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(jg.__file__).parents[1])])
    start = lambda process: subprocess.Popen(
        [sys.executable, "-c", PROCESS, port, process], env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    processes = [start("0"), start("1")]
    try:
        for process in processes:
            output, _ = process.communicate(timeout=300)
            assert "same {0, 1}" in output, output
    finally:
        for process in processes:
            process.kill()
