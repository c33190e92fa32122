"""A sparse auto-encoder: its gradients against torch's, its rewiring, and planted structure."""

import numpy as np
import torch

from pipelines.quick_selection import (
    QuickSelectionConfig,
    SparseAutoEncoder,
    SparseLayer,
)

PLAIN = QuickSelectionConfig(
    num_hidden=12, epsilon=3.0, noise=0.0, dropout=0.0, momentum=0.0, weight_decay=0.0, lr=0.1
)


def dense(layer: SparseLayer) -> torch.Tensor:
    """The layer's weights as a whole matrix."""
    whole = np.zeros((layer.num_in, layer.num_out), np.float64)
    whole[layer.inputs, layer.outputs] = layer.weights
    return torch.tensor(whole, requires_grad=True)


def test_a_step_is_gradient_descent_on_the_connections_that_are_there() -> None:
    model = SparseAutoEncoder(7, PLAIN)
    x_BI = np.random.default_rng(1).standard_normal((9, 7)).astype(np.float32)
    first, second = dense(model.encoder), dense(model.decoder)
    hidden_bias = torch.zeros(12, dtype=torch.float64, requires_grad=True)
    output_bias = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    before = [layer.places.copy() for layer in (model.encoder, model.decoder)]
    x = torch.tensor(x_BI, dtype=torch.float64)
    out = torch.sigmoid(x @ first + hidden_bias) @ second + output_bias
    (0.5 * (out - x).square().sum() / len(x)).backward()
    error = model.step(x_BI)
    np.testing.assert_allclose(error, (out - x).square().mean().item(), rtol=1e-5)
    for layer, old, weights, bias in (
        (model.encoder, before[0], first, hidden_bias),
        (model.decoder, before[1], second, output_bias),
    ):
        np.testing.assert_array_equal(layer.places, old)
        stepped = (weights - 0.1 * weights.grad).detach().numpy()
        np.testing.assert_allclose(layer.weights, stepped[layer.inputs, layer.outputs], atol=1e-6)
        np.testing.assert_allclose(layer.bias, -0.1 * bias.grad.numpy(), atol=1e-6)


def test_momentum_and_decay_are_those_of_torch() -> None:
    config = QuickSelectionConfig(lr=0.1, momentum=0.9, weight_decay=0.01)
    layer = SparseLayer(4, 3, 8, np.random.default_rng(0))
    theirs = torch.tensor(layer.weights, requires_grad=True)
    optimizer = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, weight_decay=0.01)
    for step in range(3):
        gradient = np.full(8, 0.5 + step, np.float32)
        layer.update(gradient, np.zeros((2, 3), np.float32), config)
        theirs.grad = torch.tensor(gradient)
        optimizer.step()
    np.testing.assert_allclose(layer.weights, theirs.detach().numpy(), atol=1e-6)


def test_rewiring_draws_the_weakest_of_either_sign_anew() -> None:
    layer = SparseLayer(30, 20, 100, np.random.default_rng(0))
    weights = layer.weights.copy()
    places = layer.places.copy()
    weakest = set()
    for sign in (1, -1):
        own = [p for p, w in zip(places.tolist(), weights.tolist(), strict=True) if w * sign > 0]
        by_size = sorted(own, key=lambda p: abs(weights[places.tolist().index(p)]))
        weakest |= set(by_size[: int(0.2 * len(own))])
    layer.velocity[:] = 1.0
    layer.rewire(0.2)
    assert len(layer.places) == 100 and (np.diff(layer.places) > 0).all()
    assert set(places.tolist()) - set(layer.places.tolist()) <= weakest
    stayed = np.isin(layer.places, sorted(set(places.tolist()) - weakest))
    assert stayed.sum() == 100 - len(weakest)
    assert (layer.velocity[stayed] == 1).all() and (layer.velocity[~stayed] == 0).all()


def test_a_layer_that_has_almost_every_connection_can_be_rewired() -> None:
    layer = SparseLayer(5, 4, 20, np.random.default_rng(0))
    layer.rewire(0.5)
    assert layer.places.tolist() == list(range(20))


def test_features_that_carry_others_are_stronger_than_noise() -> None:
    random = np.random.default_rng(1)
    hidden_RH = random.standard_normal((2000, 3))
    mixed_RI = hidden_RH @ random.standard_normal((3, 20))
    mixed_RI += 0.1 * random.standard_normal(mixed_RI.shape)
    x_RI = np.concatenate([mixed_RI, random.standard_normal((2000, 480))], axis=1)
    x_RI = ((x_RI - x_RI.mean(axis=0)) / x_RI.std(axis=0)).astype(np.float32)
    model = SparseAutoEncoder(500, QuickSelectionConfig(num_hidden=100))
    errors = [model.epoch(np.split(random.permutation(x_RI), 20)) for _ in range(12)]
    assert errors[-1] < errors[0]
    strongest = np.argsort(-model.strengths())[:20]
    assert (strongest < 20).sum() >= 16
