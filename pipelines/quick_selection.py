"""QuickSelection: inputs that a sparse denoising auto-encoder holds on to.

Atashgahi et al., Quick and robust feature selection (Machine Learning, 2022; arXiv:2012.00560).

One hidden layer; inputs with noise are to come out as they were. Both layers are sparse from the
first step, an Erdos-Renyi graph with epsilon * (n_in + n_out) connections, and stay so: after each
epoch the share zeta of the connections with the smallest positive and the largest negative weights
is removed, and as many are drawn anew (SET, Mocanu et al., 2018). Connections gather where they
help, so an input's strength s_i = sum_j |W1_ij| tells how much it carries about the others. No
labels are read.

The layers are CSR matrices and gradients are computed at the connections alone, so cost goes with
their number and not with n_in * n_hidden. Inputs must be standardised; one without any variance has
strength 0, where the paper's would be arbitrary.

Shapes: B rows of a batch, I inputs, H hidden units, E connections of a layer.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.special import expit

Matrix = npt.NDArray[np.float32]
_PART = 1 << 22
"""Products of a batch's rows and a layer's connections that are held at once."""


@dataclass(frozen=True)
class QuickSelectionConfig:
    """Of the auto-encoder; the paper's values."""

    num_hidden: int = 1000
    epsilon: float = 13.0
    """Connections of a layer per unit on either side of it."""
    zeta: float = 0.2
    """Share of the connections that is drawn anew after each epoch."""
    noise: float = 0.2
    """Standard deviation of what is added to the inputs."""
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-5
    batch_size: int = 100
    dropout: float = 0.2
    """Of hidden units."""
    seed: int = 0


@dataclass(eq=False)
class SparseLayer:
    """A linear layer with few connections; momentum included.

    Args:
        num_in, num_out: units on either side.
        num_connections: at most all there are.
        random: draws the connections and their weights.
    """

    num_in: int
    num_out: int
    num_connections: int
    random: np.random.Generator
    places: npt.NDArray[np.int64] = field(init=False)
    """(E,) rising: input * num_out + output."""
    weights: Matrix = field(init=False)
    """(E,)"""
    velocity: Matrix = field(init=False)
    bias: Matrix = field(init=False)
    bias_velocity: Matrix = field(init=False)

    def __post_init__(self) -> None:
        every = self.num_in * self.num_out
        drawn = self.random.choice(every, min(self.num_connections, every), replace=False)
        self.places = np.sort(drawn).astype(np.int64)
        self.weights = self._fresh(len(self.places))
        self.velocity = np.zeros_like(self.weights)
        self.bias = np.zeros(self.num_out, np.float32)
        self.bias_velocity = np.zeros_like(self.bias)

    @property
    def inputs(self) -> npt.NDArray[np.int64]:
        """(E,) the input of each connection."""
        return self.places // self.num_out

    @property
    def outputs(self) -> npt.NDArray[np.int64]:
        """(E,) the output of each connection."""
        return self.places % self.num_out

    def matrix(self) -> sparse.csr_matrix:
        """(I, H) as SciPy holds it; places rise, so rows need no sorting."""
        begins = np.searchsorted(self.places, np.arange(self.num_in + 1) * self.num_out)
        return sparse.csr_matrix(
            (self.weights, self.outputs, begins), shape=(self.num_in, self.num_out)
        )

    def forward(self, x_BI: Matrix) -> Matrix:
        """(B, H) before the activation."""
        return np.asarray((self.matrix().T @ x_BI.T).T) + self.bias

    def gradient(self, x_BI: Matrix, delta_BH: Matrix) -> Matrix:
        """(E,) of the connections that are there: sum over rows of x_i delta_j."""
        inputs, outputs = self.inputs, self.outputs
        # Transposed, a connection's rows lie side by side, and gathering them copies whole lines.
        x_IB, delta_HB = np.ascontiguousarray(x_BI.T), np.ascontiguousarray(delta_BH.T)
        found = np.empty(len(self.places), np.float32)
        step = max(1, _PART // max(len(x_BI), 1))
        for begin in range(0, len(found), step):
            part = slice(begin, begin + step)
            found[part] = np.einsum("eb,eb->e", x_IB[inputs[part]], delta_HB[outputs[part]])
        return found

    def backward(self, delta_BH: Matrix) -> Matrix:
        """(B, I): what reaches the inputs."""
        return np.asarray((self.matrix() @ delta_BH.T).T)

    def update(self, gradient: Matrix, delta_BH: Matrix, config: QuickSelectionConfig) -> None:
        """One step of SGD with momentum and weight decay."""
        gradient = gradient + config.weight_decay * self.weights
        self.velocity = config.momentum * self.velocity - config.lr * gradient
        self.weights = self.weights + self.velocity
        self.bias_velocity = config.momentum * self.bias_velocity - config.lr * delta_BH.sum(axis=0)
        self.bias = self.bias + self.bias_velocity

    def rewire(self, zeta: float) -> None:
        """Remove the share zeta of the weakest of either sign, and draw as many anew."""
        removed = np.zeros(len(self.places), bool)
        for sign in (1, -1):
            own = np.flatnonzero(self.weights * sign > 0)
            weakest = np.argsort(np.abs(self.weights[own]), kind="stable")
            removed[own[weakest[: int(zeta * len(own))]]] = True
        removed |= self.weights == 0
        kept = ~removed
        drawn = self._free(self.places[kept], int(removed.sum()))
        places = np.concatenate([self.places[kept], drawn])
        weights = np.concatenate([self.weights[kept], self._fresh(len(drawn))])
        velocity = np.concatenate([self.velocity[kept], np.zeros(len(drawn), np.float32)])
        order = np.argsort(places)
        self.places, self.weights, self.velocity = places[order], weights[order], velocity[order]

    def _free(self, taken: npt.NDArray[np.int64], number: int) -> npt.NDArray[np.int64]:
        """So many places that no connection holds."""
        every = self.num_in * self.num_out
        if every - len(taken) <= 4 * number:
            free = np.setdiff1d(np.arange(every), taken, assume_unique=True)
            return self.random.choice(free, min(number, len(free)), replace=False)
        found = np.zeros(0, np.int64)
        while len(found) < number:
            drawn = self.random.integers(0, every, 2 * (number - len(found)))
            fresh = np.setdiff1d(drawn, np.concatenate([taken, found]))
            found = np.concatenate([found, self.random.permutation(fresh)[: number - len(found)]])
        return found

    def _fresh(self, number: int) -> Matrix:
        return (self.random.standard_normal(number) / 10).astype(np.float32)


class SparseAutoEncoder:
    """Sigmoid hidden units, linear outputs.

    Args:
        num_inputs: I.
        config: of its size and training.
    """

    def __init__(self, num_inputs: int, config: QuickSelectionConfig) -> None:
        self.config = config
        self.random = np.random.default_rng(config.seed)
        edges = int(config.epsilon * (num_inputs + config.num_hidden))
        self.encoder = SparseLayer(num_inputs, config.num_hidden, edges, self.random)
        self.decoder = SparseLayer(config.num_hidden, num_inputs, edges, self.random)

    def step(self, x_BI: Matrix) -> float:
        """Learn from one batch of standardised rows; its mean squared error."""
        config = self.config
        noisy_BI = x_BI + config.noise * self.random.standard_normal(x_BI.shape, np.float32)
        hidden_BH = expit(self.encoder.forward(noisy_BI))
        kept_BH = (self.random.random(hidden_BH.shape) >= config.dropout) / (1 - config.dropout)
        dropped_BH = (hidden_BH * kept_BH).astype(np.float32)
        error_BI = self.decoder.forward(dropped_BH) - x_BI
        out_BI = (error_BI / len(x_BI)).astype(np.float32)
        back_BH = self.decoder.backward(out_BI) * kept_BH * hidden_BH * (1 - hidden_BH)
        back_BH = back_BH.astype(np.float32)
        of_decoder = self.decoder.gradient(dropped_BH, out_BI)
        of_encoder = self.encoder.gradient(noisy_BI, back_BH)
        self.decoder.update(of_decoder, out_BI, config)
        self.encoder.update(of_encoder, back_BH, config)
        return float(np.square(error_BI).mean())

    def epoch(self, batches: Iterable[Matrix]) -> float:
        """Learn from all batches once, then rewire; the mean of their errors."""
        errors = [self.step(batch) for batch in batches]
        self.encoder.rewire(self.config.zeta)
        self.decoder.rewire(self.config.zeta)
        return float(np.mean(errors))

    def strengths(self) -> npt.NDArray[np.float64]:
        """(I,) s_i = sum_j |W1_ij|."""
        found = np.zeros(self.encoder.num_in)
        np.add.at(found, self.encoder.inputs, np.abs(self.encoder.weights).astype(np.float64))
        return found
