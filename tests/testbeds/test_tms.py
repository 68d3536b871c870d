"""The toy model of superposition, against autograd, torch's own Adam and plain statistics."""

import pytest
import torch

from entk_helpers.testbeds import Run, tms

pytestmark = pytest.mark.trained

SMALL = {"n": 12, "n_points": 40}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def run() -> Run:
    return tms.train(4, 0.5, seed=3, steps=120, **SMALL)


def test_forward_is_relu_of_gram_matrix_plus_bias():
    model = tms.ToyModel(torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([0.5, -1.0, -1.0]))
    out = model(torch.tensor([[1.0, 5.0, 0.0], [0.0, 0.0, 1.0]]))
    assert out.tolist() == [[1.5, 0.0, 1.0], [2.5, 0.0, 3.0]]


def test_inputs_have_norm_one_and_the_asked_share_of_zeros():
    for sparsity in (0.0, 0.3, 0.9):
        x = tms.sparse_inputs(4000, 50, sparsity, generator())
        assert x.shape == (4000, 50) and (x >= 0).all()
        torch.testing.assert_close(x.norm(dim=1), torch.ones(4000))
        # 4000 * 50 independent entries: 0.006 is more than five standard errors
        assert (x == 0).float().mean().item() == pytest.approx(sparsity, abs=0.006)


def test_nonzero_entries_are_uniform_before_normalising():
    # The ratio of an entry to the largest of its point is scale-free. Of two uniforms, the
    # smaller over the larger is uniform on [0, 1] as well.
    x = tms.sparse_inputs(20000, 2, 0.0, generator())
    ratio = x.amin(1) / x.amax(1)
    quantiles = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    torch.testing.assert_close(ratio.quantile(quantiles), quantiles, atol=0.02, rtol=0)


def test_points_that_come_out_empty_are_drawn_again():
    x = tms.sparse_inputs(300, 3, 0.9, generator())  # 73 % of first draws are empty
    torch.testing.assert_close(x.norm(dim=1), torch.ones(300))


def test_gradient_is_that_of_autograd():
    x = tms.sparse_inputs(30, 7, 0.5, generator()).double()
    W = torch.randn(2, 3, 7, generator=generator(1), dtype=torch.float64, requires_grad=True)
    b = torch.randn(2, 7, 1, generator=generator(2), dtype=torch.float64, requires_grad=True)
    weight = tms.importance(7)[:, None] / (30 * 7)
    x = torch.stack([x, x.flip(0) ** 2])
    models = [tms.ToyModel(w, v.flatten()) for w, v in zip(W, b, strict=True)]
    loss = sum(
        (weight.T * (x_r - model(x_r)).square()).sum() for x_r, model in zip(x, models, strict=True)
    )
    loss.backward()
    with torch.no_grad():
        f = torch.relu(W.mT @ W @ x.mT + b)
        dW, db = tms._gradients_(W, x, f, f - x.mT, weight)
    for r, model in enumerate(models):
        torch.testing.assert_close(dW[r], model.W.grad, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(db[r].flatten(), model.b.grad, rtol=1e-12, atol=1e-15)


def test_training_matches_a_plain_autograd_loop(run):
    model = run.at(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(121):
        weight = 0.8 ** torch.arange(12)
        loss = (weight * (run.targets - model(run.inputs)) ** 2).mean()
        losses.append(loss.item())
        if len(losses) < 121:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.testing.assert_close(model.W, run.model.W, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(model.b, run.model.b, rtol=1e-3, atol=1e-5)
    assert run.history["loss"] == pytest.approx([losses[s] for s in run.history["step"]], rel=1e-4)


def test_a_batch_of_seeds_is_the_same_as_one_at_a_time():
    batch = tms.train_seeds(5, 0.9, [7, 2, 11], steps=300)
    for seed, together in zip([7, 2, 11], batch, strict=True):
        alone = tms.train(5, 0.9, seed=seed, steps=300)
        assert torch.equal(together.inputs, alone.inputs)
        assert torch.equal(together.at(0).W, alone.at(0).W)
        torch.testing.assert_close(together.model.W, alone.model.W, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(together.model.b, alone.model.b, rtol=1e-3, atol=1e-5)
    assert not torch.equal(batch[0].inputs, batch[1].inputs)


def test_start_is_xavier_normal_with_zero_bias():
    run = tms.train(40, 0.3, n=200, n_points=2, steps=1)
    start = run.at(0)
    assert not start.b.any()
    assert start.W.mean().item() == pytest.approx(0, abs=5e-3)
    assert start.W.std().item() == pytest.approx((2 / 240) ** 0.5, rel=0.03)


def test_the_same_seed_gives_the_same_run(run):
    again = tms.train(4, 0.5, seed=3, steps=120, **SMALL)
    assert torch.equal(again.model.W, run.model.W) and again.history == run.history


def test_random_state_of_the_caller_is_neither_used_nor_changed():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = tms.train(2, 0.5, steps=2, **SMALL)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(tms.train(2, 0.5, steps=2, **SMALL).model.W, first.model.W)


def test_run_keeps_its_promises(run):
    assert run.model(run.inputs).shape == run.targets.shape == (40, 12)
    assert torch.equal(run.inputs, run.targets)
    assert run.history["step"] == [0, 50, 100, 120]
    assert {len(values) for values in run.history.values()} == {4}
    assert run.history["loss"][-1] < run.history["loss"][0]
    assert run.history["reconstructed"][-1] == tms.reconstructed(run.model).sum()
    assert sorted(run.checkpoints) == [0, 120]
    assert torch.equal(run.at(120).W, run.model.W) and not torch.equal(run.at(0).W, run.model.W)
    with torch.no_grad():
        run.at(120).W.zero_()
    assert run.model.W.any() and run.checkpoints[120]["W"].any()
    with pytest.raises(ValueError, match=r"step is 7.*\[0, 120\]"):
        run.at(7)


def test_importance_and_reconstructed():
    torch.testing.assert_close(tms.importance(3), torch.tensor([1, 0.8, 0.64], dtype=torch.float64))
    assert tms.importance().shape == (50,)
    model = tms.ToyModel(torch.diag(torch.tensor([1.0, 0.5, 0.9])), torch.zeros(3))
    assert tms.reconstructed(model).tolist() == [True, False, True]
    assert tms.reconstructed(model, threshold=0.2).all()


def test_dense_training_reconstructs_the_m_most_important_features():
    # Paper, author's seed: 10 features for (10, 0.3). Without superposition they are the first 10.
    run = tms.train(10, 0.3, steps=3000)
    assert tms.reconstructed(run.model).nonzero().flatten().tolist() == list(range(10))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"m": 0}, "m is 0; give from 1 to n = 50"),
        ({"m": 51}, "m is 51; give from 1 to n = 50"),
        ({"sparsity": 1.0}, r"sparsity is 1.0; .* in \[0, 1\)"),
        ({"sparsity": -0.1}, "sparsity is -0.1"),
        ({"sparsity": float("nan")}, "sparsity is nan"),
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": [1, 2, 1]}, r"seeds is \[1, 2, 1\]; give each seed once"),
        ({"steps": 0}, "steps is 0"),
        ({"n": 0}, "n is 0"),
        ({"n_points": 0}, "n_points is 0"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"importance_decay": 0.0}, "importance_decay is 0.0"),
    ],
)
def test_bad_arguments_are_named_with_a_remedy(arguments, message):
    with pytest.raises(ValueError, match=message):
        tms.train_seeds(**({"m": 10, "sparsity": 0.3, "seeds": [0]} | arguments))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_sees_the_same_data_and_start():
    here, there = (tms.train(4, 0.5, steps=100, device=d, **SMALL) for d in ("cpu", "cuda"))
    assert there.inputs.is_cuda and there.model.W.is_cuda
    assert torch.equal(here.inputs, there.inputs.cpu())
    torch.testing.assert_close(here.model.W, there.model.W.cpu(), rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def small():
    """A briefly trained model with weights on its rows, and its Jacobian by autograd."""
    trained = tms.train(4, 0.6, n=9, n_points=30, steps=200, seed=3)
    model, x = trained.model.double(), trained.inputs.double()
    weight = tms.importance(9) ** 0.2
    rows = []
    for point in x:
        for c, f in enumerate(model(point[None])[0]):
            gradient = torch.autograd.grad(f, [model.W, model.b], retain_graph=True)
            rows.append(weight[c] * torch.cat([g.flatten() for g in gradient]))
    return tms.ClosedForm.of(model, x, weight), torch.stack(rows)


def test_closed_form_products_are_those_of_autograds_jacobian(small):
    form, J = small
    v = torch.randn(J.shape[1], 3, dtype=J.dtype, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(form.gram(), J.T @ J, atol=1e-12)
    assert torch.allclose(form.jvp(v), J @ v, atol=1e-12)
    u = torch.randn(30, 9, dtype=J.dtype, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(form.vjp(u), J.T @ u.flatten(), atol=1e-12)


def test_blocks_have_the_nonzero_spectra_of_each_class(small):
    form, J = small
    for c, block in enumerate(form.blocks()):
        of_class = torch.linalg.eigvalsh(J[c::9] @ J[c::9].T)[-14:]
        assert torch.allclose(torch.linalg.eigvalsh(block)[-14:], of_class, atol=1e-11)


def test_gate_matrix_is_the_kernel_between_gate_vectors_and_bounds_its_spectrum(small):
    form, J = small
    gates = torch.zeros(30, 9, 9, dtype=J.dtype)
    for c in range(9):
        gates[:, c, c] = form.gates[:, c] / form.gates[:, c].norm().clamp(min=1)
    u = gates.reshape(270, 9)
    assert torch.allclose(form.gate_matrix(), u.T @ J @ J.T @ u, atol=1e-11)
    predicted = torch.linalg.eigvalsh(form.gate_matrix()).flip(0)
    assert bool((predicted <= torch.linalg.eigvalsh(J @ J.T).flip(0)[:9] + 1e-11).all())
