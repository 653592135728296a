"""Solvers as tables: what each denoising step does, worked out once in float64 from the noise schedule.

A table has one row per network evaluation and one column per name in COLUMNS. Every row is run alike:

    out        = network(x, t)
    x0         = clip(p*x + q*out)
    prediction = m*x0 + n*out
    x          = a*x + b*x0 + c*out + d1*h1 + d2*h2 + d3*h3 + s*noise

h1, h2, h3 are the latest predictions, newest first and zero to begin with; noise is standard normal.

Diffusion: x_t = alpha*data + sigma*noise with alpha^2 = alphas_cumprod[t] and alpha^2 + sigma^2 = 1. The last row steps
to clean data, alpha = 1, but for ``ddim`` of a schedule with a spacing where the library's own does not. A flow:
x_t = t*data + (1 - t)*noise. A prime, as in alpha', marks the level a row steps to.

Descent: out is the gradient of a loss by the state, and a row is a step of an optimiser. The network divides the
gradient by its size where t is 1, so that a row goes as far as it chooses, and leaves it as it is where t is 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.sampling.betas import BETAS
from serving.sampling.spacing import SPACINGS, Timesteps, spaced, spaced_above_clean, trailing

Array = NDArray[np.float64]

COLUMNS = ("t", "p", "q", "a", "b", "c", "s", "m", "n", "d1", "d2", "d3")
HISTORY = 3
MOST_TIMESTEPS = 100_000

OF_DIFFUSION = ("epsilon", "v", "sample")
PREDICTIONS = {
    **dict.fromkeys((*BETAS, "betas"), OF_DIFFUSION),
    "flow": ("velocity",),
    "descent": ("gradient",),
}


@dataclass(frozen=True)
class Schedule:
    """The noise a network was trained on, and what it predicts. ValueError for values other than these:

    kind: "linear" (betas evenly spaced), "scaled_linear" (their square roots are), "cosine", "sigmoid", "betas" (as
    given), "flow", or "descent" for no noise.
    num_train_timesteps: number of noise levels, 1 to 100,000; the network sees t from 0 to num_train_timesteps - 1. Of
    a descent, which was trained on none, it is the most steps that a request may ask for.
    beta_start, beta_end: first and last beta, 0 < beta_start <= beta_end < 1, of those kinds that have them.
    prediction: "epsilon" (noise), "v" (alpha*noise - sigma*data) or "sample" (data); "velocity" (data - noise) for a
    flow; "gradient" (of a loss) for a descent.
    spacing: "leading", "trailing" or "linspace" have ddpm, ddim and dpmpp take the timesteps that those samplers of
    diffusers and MONAI take; None those that each is best with.
    offset: what "leading" and "linspace" add to their timesteps, from 0 up, as far as there is room.
    ends_clean: whether ddim's last step leads to clean data; if not, to timestep 0, of which the other solvers know
    nothing.
    betas: of "betas", num_train_timesteps of them, each above 0 and below 1.
    """

    kind: str
    num_train_timesteps: int
    beta_start: float
    beta_end: float
    prediction: str
    spacing: str | None = None
    offset: int = 0
    ends_clean: bool = True
    betas: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))  # of JSON, a list
        if self.kind not in PREDICTIONS:
            raise ValueError(f"schedule kind must be one of {', '.join(PREDICTIONS)}, not {self.kind!r}")
        if self.prediction not in PREDICTIONS[self.kind]:
            allowed = ", ".join(PREDICTIONS[self.kind])
            raise ValueError(f"prediction of a {self.kind} schedule must be one of {allowed}, not {self.prediction!r}")
        levels = self.num_train_timesteps
        if not isinstance(levels, Integral) or not 1 <= levels <= MOST_TIMESTEPS:
            raise ValueError(f"num_train_timesteps must be an integer from 1 to {MOST_TIMESTEPS}, not {levels!r}")
        if self.kind in BETAS and self.kind != "cosine" and not 0 < self.beta_start <= self.beta_end < 1:
            betas = f"{self.beta_start!r} and {self.beta_end!r}"
            raise ValueError(f"beta_start and beta_end must keep 0 < beta_start <= beta_end < 1, not {betas}")
        if len(self.betas) != (levels if self.kind == "betas" else 0):
            raise ValueError(f"betas are {len(self.betas)}; a schedule of {levels} betas has as many, any other none")
        if wrong := [beta for beta in self.betas if not 0 < beta < 1]:
            raise ValueError(f"betas must be above 0 and below 1, not {wrong[0]!r}")
        if self.spacing not in (None, *SPACINGS):
            raise ValueError(f"spacing must be one of {', '.join(SPACINGS)}, or None, not {self.spacing!r}")
        if not isinstance(self.offset, Integral) or not 0 <= self.offset < levels:
            raise ValueError(f"offset must be an integer from 0 to {levels - 1}, not {self.offset!r}")
        plain = (self.spacing, self.offset, self.ends_clean) == (None, 0, True)
        if not plain and (self.process != "diffusion" or self.spacing is None):
            raise ValueError("spacing is of a diffusion; offset and ends_clean are of a spacing")

    @property
    def process(self) -> str:
        """Which solvers fit: those for "diffusion", for "flow" or for "descent"."""
        return self.kind if self.kind in ("flow", "descent") else "diffusion"

    @property
    def alphas_cumprod(self) -> Array:
        """Share of data in the variance of x_t, float64 [num_train_timesteps], falling with t; a flow has none."""
        if self.process != "diffusion":
            raise ValueError(f"alphas_cumprod belongs to diffusions; this one is a {self.kind}")
        if self.kind == "betas":
            return np.cumprod(1 - np.array(self.betas))
        return np.cumprod(1 - BETAS[self.kind](self.num_train_timesteps, self.beta_start, self.beta_end))


class Levels(NamedTuple):
    """The noise levels a table steps from and to, each float64 [rows].

    x0 = p*x + q*out and noise = u*x + w*out, where out is what the network predicts.
    """

    t: Array
    alpha: Array
    sigma: Array
    next_alpha: Array
    next_sigma: Array
    p: Array
    q: Array
    u: Array
    w: Array


def data_weights(prediction: str, alpha: Any, sigma: Any) -> tuple[Any, Any]:
    """p and q of x0 = p*x + q*out, where x = alpha*data + sigma*noise: arrays or tensors of any shape, as these are."""
    if prediction == "velocity":  # of a flow, whose alpha is 1 - sigma
        return 1 + 0 * alpha, sigma
    if prediction == "v":
        return alpha, -sigma
    if prediction == "sample":
        return 0 * alpha, 1 + 0 * alpha
    return 1 / alpha, -sigma / alpha


def _levels(schedule: Schedule, timesteps: Timesteps, following: Timesteps | None = None, clean: float = 1.0) -> Levels:
    """following: where each row steps to, if not to the next; what is below 0 has ``clean`` for alphas_cumprod."""
    following = np.append(timesteps[1:], -1) if following is None else following
    known = schedule.alphas_cumprod
    here, there = known[timesteps], np.where(following < 0, clean, known[following])
    alpha, sigma = np.sqrt(here), np.sqrt(1 - here)
    p, q = data_weights(schedule.prediction, alpha, sigma)
    if schedule.prediction == "v":
        u, w = sigma, alpha
    elif schedule.prediction == "sample":
        u, w = 1 / sigma, -alpha / sigma
    else:
        u, w = np.zeros_like(alpha), np.ones_like(alpha)
    return Levels(timesteps.astype(np.float64), alpha, sigma, np.sqrt(there), np.sqrt(1 - there), p, q, u, w)


def _check_steps(schedule: Schedule, steps: int) -> None:
    if not isinstance(steps, Integral) or isinstance(steps, bool) or not 1 <= steps <= schedule.num_train_timesteps:
        raise ValueError(f"steps must be an integer from 1 to {schedule.num_train_timesteps}, not {steps!r}")


def _even(schedule: Schedule, steps: int) -> Timesteps:
    """Evenly spaced from the largest down: as the schedule says or, if it says nothing, as diffusers has them.

    A count that divides T takes the multiples of T / steps below T, diffusers' "leading" spacing. Any other, and 1,
    is ``_trailing``: "leading" would begin well below T, where the state should not be noise alone.
    """
    _check_steps(schedule, steps)
    last = schedule.num_train_timesteps
    if schedule.spacing is not None:
        return spaced(schedule.spacing, last, steps, schedule.offset)
    if steps > 1 and last % steps == 0:
        return spaced("leading", last, steps, offset=0)
    return trailing(last, steps)


def _for_dpmpp(schedule: Schedule, steps: int) -> Timesteps:
    """As the schedule says or, if it says nothing, evenly spaced in log(alpha / sigma)."""
    if schedule.spacing is None:
        return _log_snr(schedule, steps)
    _check_steps(schedule, steps)
    return spaced_above_clean(schedule.spacing, schedule.num_train_timesteps, steps, schedule.offset)


def _log_snr(schedule: Schedule, steps: int) -> Timesteps:
    """From T - 1 down, evenly spaced in log(alpha / sigma) as far as whole timesteps, each used once, allow."""
    _check_steps(schedule, steps)
    alphas_cumprod = schedule.alphas_cumprod
    log_nsr = np.log1p(-alphas_cumprod) - np.log(alphas_cumprod)  # rises with t
    wanted = np.linspace(log_nsr[0], log_nsr[-1], steps + 1)[1:]
    nearest = np.interp(wanted, log_nsr, np.arange(len(log_nsr))).round().astype(np.int64)
    rank = np.arange(steps)
    distinct = rank + np.minimum(np.maximum.accumulate(nearest - rank), len(log_nsr) - steps)
    return distinct[::-1]


def _flow_times(schedule: Schedule, steps: int, rows_per_step: int = 1) -> Array:
    """Evenly spaced from 0 up towards, and without, 1."""
    if schedule.process != "flow":
        raise ValueError(f"euler and midpoint solve flow schedules; this one is {schedule.kind}")
    _check_steps(schedule, steps)
    return np.arange(steps * rows_per_step) / (steps * rows_per_step)


def _flow_levels(schedule: Schedule, steps: int) -> Levels:
    time = _flow_times(schedule, steps)
    alphas = np.append(time, 1.0)
    sigmas = 1.0 - alphas
    t = time * (schedule.num_train_timesteps - 1)
    p, q = data_weights(schedule.prediction, alphas[:-1], sigmas[:-1])
    return Levels(t, alphas[:-1], sigmas[:-1], alphas[1:], sigmas[1:], p, q, u=np.ones(steps), w=-time)


def _multistep_levels(schedule: Schedule, steps: int) -> Levels:
    if schedule.process == "flow":
        return _flow_levels(schedule, steps)
    return _levels(schedule, _for_dpmpp(schedule, steps))


def _table(rows: int, **columns: Array | float) -> Array:
    table = np.zeros((rows, len(COLUMNS)))
    for name, values in columns.items():
        table[:, COLUMNS.index(name)] = values
    return table


def ddpm(schedule: Schedule, steps: int) -> Array:
    """Ancestral sampling, the posterior of x_t' given x_t and x0: Ho et al. 2020 (arXiv 2006.11239), eq. 6 and 7."""
    k = _levels(schedule, _even(schedule, steps))
    beta = 1 - (k.alpha / k.next_alpha) ** 2
    a = k.alpha / k.next_alpha * (k.next_sigma / k.sigma) ** 2
    b = k.next_alpha * beta / k.sigma**2
    s = k.next_sigma / k.sigma * np.sqrt(beta)
    return _table(steps, t=k.t, p=k.p, q=k.q, a=a, b=b, s=s)


def ddim(schedule: Schedule, steps: int, eta: float = 0.0) -> Array:
    """Song et al. 2021 (arXiv 2010.02502), eq. 12 and 16. First order; eta from 0 (no noise) to 1 (as much as ddpm).

    Of a schedule with a spacing each row steps to the level T // steps below, as diffusers and MONAI do, even where the
    next row's timestep is another.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be from 0 to 1, not {eta!r}")
    return _ddim(_even_levels(schedule, steps), eta)


def ddim_clipped(schedule: Schedule, steps: int) -> Array:
    """``ddim``, but with the noise that the clipped estimate of the data leaves: diffusers' use_clipped_model_output.

    Where a model clips, ``ddim`` gives back a part of what was cut off at every step, the more the more steps; where it
    does not, they are the same but for rounding.
    """
    return _of_data(_even_levels(schedule, steps))


def ddim_clipped_trailing(schedule: Schedule, steps: int) -> Array:
    """``ddim_clipped`` from T - 1 down whatever the steps and the schedule's spacing: students are distilled so.

    Half as many steps take every other of its timesteps.
    """
    _check_steps(schedule, steps)
    return _of_data(_levels(schedule, trailing(schedule.num_train_timesteps, steps)))


def _of_data(k: Levels) -> Array:
    """x = alpha*x0 + sigma*noise again, a level lower: x0 is the clipped estimate, noise what it leaves of x."""
    kept = k.next_sigma / k.sigma
    return _table(len(k.t), t=k.t, p=k.p, q=k.q, a=kept, b=k.next_alpha - kept * k.alpha)


def _even_levels(schedule: Schedule, steps: int) -> Levels:
    """Of ``ddim``."""
    timesteps = _even(schedule, steps)
    following = None if schedule.spacing is None else timesteps - schedule.num_train_timesteps // steps
    clean = 1.0 if schedule.ends_clean else float(schedule.alphas_cumprod[0])
    return _levels(schedule, timesteps, following, clean)


def _ddim(k: Levels, eta: float = 0.0) -> Array:
    s = eta * k.next_sigma / k.sigma * np.sqrt(1 - (k.alpha / k.next_alpha) ** 2)
    toward_noise = np.sqrt(k.next_sigma**2 - s**2)
    return _table(len(k.t), t=k.t, p=k.p, q=k.q, a=toward_noise * k.u, b=k.next_alpha, c=toward_noise * k.w, s=s)


def dpmpp_2m(schedule: Schedule, steps: int) -> Array:
    """DPM-Solver++(2M): Lu et al. 2022 (arXiv 2211.01095), algorithm 2. Second order.

    It takes even steps of log(alpha / sigma): on a trained 64x64 PIG they left half the error in the images that even
    steps of t did, at 12 and at 20 steps. Of a flow it takes even steps of t: there the logarithm has no beginning.
    """
    return _dpmpp(_multistep_levels(schedule, steps), 2)


def dpmpp_3m(schedule: Schedule, steps: int) -> Array:
    """DPM-Solver++(3M): the third-order multistep update in the code of Lu et al. 2022 (arXiv 2211.01095).

    That code gives the second difference half the weight that Taylor's formula asks for, and so do we: the order stays
    2, at a third of the error of dpmpp_2m.
    """
    return _dpmpp(_multistep_levels(schedule, steps), 3)


def _dpmpp(k: Levels, order: int) -> Array:
    """Exponential integrators in log(alpha / sigma); lower order at the ends, as in the authors' code."""
    steps = len(k.t)
    with np.errstate(divide="ignore"):
        # infinite on the last row and, of a flow, on the first
        h = np.log(k.next_alpha / k.next_sigma) - np.log(k.alpha / k.sigma)
    weights = np.zeros((steps, 3))  # of x0, h1 and h2
    weights[:, 0] = -np.expm1(-h)
    for i in range(1, steps - 1):
        known = min(order, i + 1, steps - i if steps < 15 else order)
        r0 = h[i - 1] / h[i]
        slope = np.array([1, -1, 0]) / r0
        if known == 2:
            weights[i] += -np.expm1(-h[i]) / 2 * slope
        else:
            r1 = h[i - 2] / h[i]
            bend = (slope - np.array([0, 1, -1]) / r1) / (r0 + r1)
            phi_2 = np.expm1(-h[i]) / h[i] + 1
            phi_3 = phi_2 / h[i] - 0.5
            weights[i] += phi_2 * (slope + r0 * bend) - phi_3 * bend
    b, d1, d2 = k.next_alpha * weights.T
    return _table(steps, t=k.t, p=k.p, q=k.q, a=k.next_sigma / k.sigma, b=b, m=1, d1=d1, d2=d2)


def unipc(schedule: Schedule, steps: int) -> Array:
    """UniPC-3: Zhao et al. 2023 (arXiv 2302.04867), UniP-3 and UniC-3 of the data with B2(h).

    Fourth order; of a flow, whose log(alpha / sigma) has no beginning, second. Each row first corrects the state that
    it was given by what the network says of it, and steps on from there. Timesteps are those of ``dpmpp_2m``.
    """
    k = _multistep_levels(schedule, steps)
    with np.errstate(divide="ignore"):
        log_snr = np.append(np.log(k.alpha / k.sigma), np.inf)  # of a flow, -inf to begin with
    first = int(np.isinf(log_snr[0]))  # the row before which nothing can be interpolated
    weights = np.zeros((steps, HISTORY + 1))  # of x0, h1, h2 and h3
    predicted = np.zeros(0)  # of the row before
    for i in range(steps):
        if i > first:
            order = len(predicted)
            corrected = _interpolated(log_snr[i - 1], log_snr[i], log_snr[i - np.arange(order + 1)])
            corrected[1:] -= predicted
            weights[i, : order + 1] += k.alpha[i] * k.next_sigma[i] / k.sigma[i] * corrected
        order = max(1, min(HISTORY, steps - i, i - first + 1))
        predicted = _interpolated(log_snr[i], log_snr[i + 1], log_snr[i - np.arange(order)])
        weights[i, :order] += k.next_alpha[i] * predicted
    b, d1, d2, d3 = weights.T
    return _table(steps, t=k.t, p=k.p, q=k.q, a=k.next_sigma / k.sigma, b=b, m=1, d1=d1, d2=d2, d3=d3)


PLACES, SHARES = (np.polynomial.legendre.leggauss(16) + np.array([[1.0], [0.0]])) / 2  # Gauss's, of 0 to 1


def _interpolated(here: float, there: float, known: Array) -> Array:
    """Weights of data estimates ``known`` in the integral of exp(s - there) times their polynomial, from here to there.

    All are log(alpha / sigma). Of two, the slope has the weight of the paper's B2(h), half that of the mean.
    """
    h = there - here
    mean = -np.expm1(-h)
    if len(known) == 1:
        return np.array([mean])
    moments = [SHARES @ (h * np.exp(h * (PLACES - 1)) * PLACES**power) for power in range(len(known))]
    if len(known) == 2:
        moments[1] = mean / 2
    return np.linalg.solve(np.vander((known - here) / h, increasing=True).T, moments)


ADAMS_BASHFORTH = np.array([[24, 0, 0, 0], [36, -12, 0, 0], [46, -32, 10, 0], [55, -59, 37, -9]]) / 24


def ipndm(schedule: Schedule, steps: int) -> Array:
    """Adams-Bashforth on the network's own outputs: Liu et al. 2022 (arXiv 2202.09778), eq. 9 and 12. Second order.

    Its order is not 4, for these are the weights of equal steps. The first rows make do with the history there is, as
    in Zhang and Chen 2022 (arXiv 2204.13902); the first and the last are DDIM's. With "v" it solves dx/d(angle) = v,
    where angle = arctan(sigma / alpha): DDIM in angular coordinates, Salimans and Ho 2022 (arXiv 2202.00512).

    Networks that predict data have no such outputs.

    Four outputs are stable while a step takes less than 3/10 off sigma / alpha: from some 27 steps on with the usual
    betas. 20 still go well; with fewer the errors of an "epsilon" network grow, and dpmpp_2m is the better choice.
    """
    k = _levels(schedule, _log_snr(schedule, steps))
    earlier = np.minimum(np.arange(steps), HISTORY)
    earlier[-1] = 0
    if schedule.prediction == "v":
        turn = np.arctan2(k.next_sigma, k.next_alpha) - np.arctan2(k.sigma, k.alpha)
        keep, push = np.where(earlier == 0, [np.cos(turn), np.sin(turn)], [np.ones(steps), turn])
    else:
        keep = k.next_alpha / k.alpha
        push = k.next_sigma - k.sigma * keep
    b = k.next_alpha  # x0 enters as in DDIM, so that it can be clipped; a and c take back what it adds to keep and push
    w0, d1, d2, d3 = push * ADAMS_BASHFORTH[earlier].T
    return _table(steps, t=k.t, p=k.p, q=k.q, a=keep - b * k.p, b=b, c=w0 - b * k.q, n=1, d1=d1, d2=d2, d3=d3)


def euler(schedule: Schedule, steps: int) -> Array:
    """x + h*v for dx/dt = v, t from 0 to 1: Lipman et al. 2023 (arXiv 2210.02747), eq. 1. First order."""
    t = _flow_times(schedule, steps, 1)
    p, q = data_weights(schedule.prediction, t, 1 - t)
    return _table(steps, t=t * (schedule.num_train_timesteps - 1), p=p, q=q, a=1, c=1 / steps)


def midpoint(schedule: Schedule, steps: int) -> Array:
    """x + h*v(x + h/2*v(x)), the same equation by the explicit midpoint rule. Second order, two rows a step."""
    t, h = _flow_times(schedule, steps, 2), 1 / steps
    p, q = data_weights(schedule.prediction, t, 1 - t)
    c, n, d1 = np.tile([[h / 2, h], [1, 0], [0, -h / 2]], steps)
    return _table(2 * steps, t=t * (schedule.num_train_timesteps - 1), p=p, q=q, a=1, c=c, n=n, d1=d1)


def _check_descent(schedule: Schedule, steps: int) -> None:
    if schedule.process != "descent":
        raise ValueError(f"gd and heavy_ball descend a loss; this schedule is {schedule.kind}")
    _check_steps(schedule, steps)


def gd(schedule: Schedule, steps: int, rate: float = 1.0) -> Array:
    """Gradient descent, x - rate*gradient, as mGANprior takes 3,000 steps of it: Gu et al. 2020 (arXiv 1912.07116)."""
    _check_descent(schedule, steps)
    return _table(steps, p=1, a=1, c=-rate, m=1)


def heavy_ball(schedule: Schedule, steps: int, rate: float = 0.1, momentum: float = 0.9) -> Array:
    """x - rate*g + momentum*(x - the x before), where g is the gradient over its size: Polyak 1964, eq. 9.

    The rate falls as half a cosine to nothing, so that the last steps settle however many there are. A row's data
    estimate is its state, which so becomes the h1 of the next.
    """
    _check_descent(schedule, steps)
    rates = rate * (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2
    kept = np.full(steps, momentum)
    kept[0] = 0.0
    return _table(steps, t=1, p=1, a=1.0 + kept, c=-rates, m=1, d1=-kept)


@dataclass(frozen=True)
class Solver:
    """table(schedule, steps) -> float64 [rows, 12]; fits: which Schedule.process; stochastic: it draws noise.

    not_for: predictions of which it can make nothing.
    """

    table: Callable[[Schedule, int], Array]
    fits: tuple[str, ...]
    stochastic: bool = False
    not_for: tuple[str, ...] = ()


SOLVERS = {
    "ddpm": Solver(ddpm, ("diffusion",), stochastic=True),
    "ddim": Solver(ddim, ("diffusion",)),
    "dpmpp_2m": Solver(dpmpp_2m, ("diffusion", "flow")),
    "dpmpp_3m": Solver(dpmpp_3m, ("diffusion",)),
    "unipc": Solver(unipc, ("diffusion", "flow")),
    "ipndm": Solver(ipndm, ("diffusion",), not_for=("sample",)),
    "ddim_clipped": Solver(ddim_clipped, ("diffusion",)),
    "ddim_clipped_trailing": Solver(ddim_clipped_trailing, ("diffusion",)),
    "euler": Solver(euler, ("flow",)),
    "midpoint": Solver(midpoint, ("flow",)),
    "gd": Solver(gd, ("descent",)),
    "heavy_ball": Solver(heavy_ball, ("descent",)),
}


def solvers_for(schedule: Schedule) -> list[str]:
    """Names of the solvers that fit."""
    return [
        name
        for name, solver in SOLVERS.items()
        if schedule.process in solver.fits and schedule.prediction not in solver.not_for
    ]


@lru_cache(maxsize=256, typed=True)
def solver_table(name: str, schedule: Schedule, steps: int) -> Array:
    """The table of a solver by name: float64 [rows, 12], contiguous, read-only, cached.

    Raises ValueError for a solver that is unknown or does not fit the schedule, and for steps that are not an integer
    from 1 to schedule.num_train_timesteps.
    """
    allowed = solvers_for(schedule)
    if name not in allowed:
        raise ValueError(f"solver for a {schedule.kind} schedule must be one of {', '.join(allowed)}, not {name!r}")
    table = SOLVERS[name].table(schedule, steps)
    table.flags.writeable = False
    return table


def longest_table(schedule: Schedule) -> int:
    """Rows of the longest table that a solver has for this schedule."""
    return max(len(solver_table(name, schedule, schedule.num_train_timesteps)) for name in solvers_for(schedule))
