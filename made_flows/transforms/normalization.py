"""Normalisation between the layers of a flow: batch normalisation and actnorm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from made_flows._checks import check_event, check_finite, expect, positive_integer, real_number
from made_flows._registry import saveable
from made_flows._torch import has_concrete_values
from made_flows.transforms.base import Transform


@saveable
class BatchNorm(Transform):
    r"""Batch normalisation as a layer of a flow.

    .. math:: z = \frac{x - m}{\sqrt{v + \epsilon}}\, e^{\gamma} + \beta, \qquad
        \log |\det| = \sum_i \gamma_i - \tfrac12 \log(v_i + \epsilon)

    In training mode :meth:`to_noise` takes mean m and variance v from the batch (all leading
    dimensions), and updates their running averages; a row's density then depends on the rows
    beside it. Everything else uses the running averages: both directions in evaluation mode, and
    :meth:`to_data` always, so that samples do not depend on one another. To score the samples of a
    model, put it in evaluation mode.

    Args:
        features: number of features D.
        momentum: weight of a new batch in the running averages (in the first batches more, so
            that the start is forgotten).
        epsilon: added to the variance.

    Raises:
        ValueError: in training mode, for a batch of fewer than two rows, and for values that are
            not finite, which would stay in the running averages.

    References:
        Dinh et al. 2017, *Density estimation using Real NVP*, section 3.7 and appendix E;
        Papamakarios et al. 2017, *Masked Autoregressive Flow*, appendix B.

    Example:
        >>> z, _ = BatchNorm(1).to_noise(torch.tensor([[7.0], [3.0]]))
        >>> z.detach().round(decimals=3)
        tensor([[ 1.],
                [-1.]])
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor

    unit_free = True
    changing = ("mean", "variance")

    def __init__(self, features: int, momentum: float = 0.1, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.features = positive_integer(features, "features")
        self.momentum = real_number(momentum, "momentum", above=0)
        expect(self.momentum <= 1, "momentum", "to be at most 1", momentum)
        self.epsilon = real_number(epsilon, "epsilon", above=0)
        self.log_scale = nn.Parameter(torch.zeros(self.features))
        self.shift = nn.Parameter(torch.zeros(self.features))
        self.register_buffer("mean", torch.zeros(self.features))
        self.register_buffer("variance", torch.ones(self.features))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    @property
    def random_part(self) -> str:
        return "means and variances of the rows beside them" if self.training else ""

    def to_noise(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("x", x, context, self.shift.dtype)
        mean, variance = self._statistics(x) if self.training else (self.mean, self.variance)
        log_scale = self.log_scale - 0.5 * torch.log(variance + self.epsilon)
        z = (x - mean) * torch.exp(log_scale) + self.shift
        return z, log_scale.sum().expand(x.shape[:-1])

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("z", z, context, self.shift.dtype)
        log_scale = 0.5 * torch.log(self.variance + self.epsilon) - self.log_scale
        x = (z - self.shift) * torch.exp(log_scale) + self.mean
        return x, log_scale.sum().expand(z.shape[:-1])

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute mean and variance of a batch, and note them in the running averages."""
        rows = x.reshape(-1, self.features)
        count = len(rows)
        wanted = "to have at least two rows in training mode, for its variance"
        expect(count > 1, "a batch", wanted, f"{count} (use .eval() to score single rows)")
        check_finite(x, "x")
        variance, mean = torch.var_mean(rows, dim=0, correction=0)
        with torch.no_grad():
            self.batches += 1
            weight = (1 / self.batches).clamp(min=self.momentum).to(mean.dtype)
            self.mean.lerp_(mean.detach(), weight)
            self.variance.lerp_(variance.detach() * (count / (count - 1)), weight)
        return mean, variance

    def extra_repr(self) -> str:
        return f"features={self.features}, momentum={self.momentum:g}"


@saveable
class ActNorm(Transform):
    r"""A learned scale and shift per feature that starts by standardising the data.

    .. math:: z = e^{\gamma} (x + \beta), \qquad \log |\det| = \sum_i \gamma_i

    The first call of :meth:`to_noise` in training mode sets :math:`\beta` and :math:`\gamma` so
    that its batch comes out with mean 0 and variance 1; from then on they are parameters like
    others. Before that, and so in a model that is never trained, the map is the identity. A model
    trained in the other direction (by gradients through samples) starts from the identity.
    Compiled training does not look at data: call :meth:`initialize` first.

    Args:
        features: number of features D.

    Raises:
        ValueError: at the first call, for a batch of fewer than two rows.

    References:
        Kingma & Dhariwal 2018, *Glow*, section 3.1.

    Example:
        >>> z, _ = ActNorm(1).to_noise(torch.tensor([[7.0], [5.0], [3.0]]))
        >>> z.detach().round(decimals=3)
        tensor([[ 1.],
                [ 0.],
                [-1.]])
    """

    initialized: Tensor

    unit_free = True

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = positive_integer(features, "features")
        self.log_scale = nn.Parameter(torch.zeros(self.features))
        self.shift = nn.Parameter(torch.zeros(self.features))
        self.register_buffer("initialized", torch.tensor(False))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Set scale and shift so that data (..., D) come out with mean 0 and variance 1.

        A column that is constant in these data keeps its scale.
        """
        check_event(x, "x", self.features, self.shift.dtype)
        check_finite(x, "the first batch")
        rows = x.reshape(-1, self.features)
        expect(len(rows) > 1, "the first batch", "to have at least two rows", len(rows))
        std, mean = torch.std_mean(rows, dim=0)
        self.shift.copy_(-mean)
        self.log_scale.copy_(torch.where(std > 0, -torch.log(std), 0.0))
        self.initialized.fill_(True)

    def to_noise(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("x", x, context, self.shift.dtype)
        if self.training and has_concrete_values(x) and not bool(self.initialized):
            self.initialize(x)
        z = (x + self.shift) * torch.exp(self.log_scale)
        return z, self.log_scale.sum().expand(x.shape[:-1])

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("z", z, context, self.shift.dtype)
        if self.training and torch.is_grad_enabled() and has_concrete_values(z):
            # Trained through samples: later data must not overwrite what was learned.
            self.initialized.fill_(True)
        x = z * torch.exp(-self.log_scale) - self.shift
        return x, -self.log_scale.sum().expand(z.shape[:-1])
