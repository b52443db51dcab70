"""An EM iteration and scoring against scikit-learn, in one process on the same cores.

    python benchmarks/density_speed.py [--size tiny|small|full] [--repeats N] [--only N [N ...]]

Both libraries start from the same parameters (a fit that has run two iterations), see the same
rows, and are timed in turn; the best time of each counts. An iteration is one E-step and one
M-step. "well" are components of condition number up to 9 whose centres lie within a few of their
widths; "narrow" have condition number 1e6, so that the stable form is used throughout; "random" are
of ordinary random shape, covariances L Lᵀ with L = 1 + 0.4 N(0, 1) around means 3 N(0, 1) + 50;
"nequip" are features of one element that a potential gives (``--features FILE.npz`` with `x` and
`z`, as benchmarks/nequip_features.py makes it), with the mixture that two iterations find. Rows are
float64; in the lines with float32 rows scikit-learn calculates in float32, mofal in float64.
Ratios are of wall time and, in brackets, of processor time, which a busy machine changes less: run
it with OMP_NUM_THREADS=1 for a comparison of the arithmetic alone.
Printed as well: which BLAS kernels run (they are the same for both libraries), the share of the
machine's rate of large matrix products that an iteration reaches, and where one thread's time goes.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from sklearn.mixture import GaussianMixture as Reference

from mofal.density import GaussianMixture
from mofal.density.basis import make_basis
from mofal.density.columns import quadratic_columns
from mofal.density.em import State, em_chunk, em_combine, maximise
from mofal.density.kernels import FIT_TOLERANCE, Evaluator
from mofal.density.rows import LocalRows, threads
from mofal.density.scoring import evaluator_of, log_likelihood_rows


class Case(NamedTuple):
    """One line of the table; targets are ratios to scikit-learn."""

    kind: str
    n_features: int
    n_components: int
    shape: str
    em_target: float
    score_target: float
    dtype: str = "f8"


CASES = (
    Case("full", 16, 40, "well", 15, 8),
    Case("full", 8, 10, "well", 6, 6),
    Case("full", 16, 10, "well", 3, 3),
    Case("full", 8, 3, "well", 3, 3),
    Case("full", 8, 1, "well", 3, 3),
    Case("full", 16, 40, "narrow", 3, 3),
    Case("full", 8, 10, "narrow", 3, 3),
    Case("tied", 16, 40, "well", 3, 3),
    Case("tied", 8, 3, "well", 3, 3),
    Case("tied", 16, 40, "narrow", 3, 3),
    Case("diag", 16, 40, "well", 3, 3),
    Case("diag", 8, 3, "well", 3, 3),
    Case("diag", 16, 40, "narrow", 3, 3),
    Case("spherical", 16, 40, "well", 3, 3),
    Case("spherical", 8, 3, "well", 3, 3),
    Case("full", 16, 40, "well", 3, 3, "f4"),
    Case("full", 8, 10, "well", 3, 3, "f4"),
    Case("full", 16, 40, "random", 20, 8),
    Case("full", 16, 40, "nequip", 20, 8),
)
PATIENCE = 15.0
"""Seconds after which a pair of functions is not timed again."""
SIZES = {"tiny": 3000, "small": 50_000, "full": 400_000}


def rows_of(case: Case, n: int, seed: int = 0) -> tuple[np.ndarray, dict[str, Any]]:
    """Rows, and a start at the true centres with the true covariances."""
    rng = np.random.default_rng(seed)
    k, d = case.n_components, case.n_features
    if case.shape == "random":
        return random_rows(rng, k, d, n)
    condition = 9.0 if case.shape == "well" else 1e6
    centres = 2.0 * rng.normal(size=(k, d))
    variance = condition ** -rng.uniform(size=(k, d))
    variance[:, 0], variance[:, -1] = 1.0, 1.0 / condition
    turn = np.broadcast_to(np.eye(d), (k, d, d))
    if case.kind in ("full", "tied"):
        turn = np.stack([np.linalg.qr(rng.normal(size=(d, d)))[0] for _ in range(k)])
    if case.kind == "tied":
        turn, variance = turn[:1].repeat(k, axis=0), variance[:1].repeat(k, axis=0)
    if case.kind == "spherical":
        variance = np.broadcast_to(variance[:, 1:2], (k, d))
    which = rng.integers(k, size=n)
    x = np.empty((n, d))
    for i in range(k):
        own = which == i
        x[own] = centres[i] + (rng.normal(size=(own.sum(), d)) * np.sqrt(variance[i])) @ turn[i].T
    precisions = (turn / variance[:, None, :]) @ np.swapaxes(turn, 1, 2)
    start = {
        "full": 0.5 * (precisions + np.swapaxes(precisions, 1, 2)),
        "tied": 0.5 * (precisions[0] + precisions[0].T),
        "diag": 1.0 / variance,
        "spherical": 1.0 / variance[:, 0],
    }[case.kind]
    given = {"weights_init": np.full(k, 1 / k), "means_init": centres, "precisions_init": start}
    return x.astype(case.dtype), given


def random_rows(
    rng: np.random.Generator, k: int, d: int, n: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Rows of components of ordinary random shape, and a start at the truth."""
    means = 3.0 * rng.normal(size=(k, d)) + 50.0
    lower = np.eye(d) + 0.4 * rng.normal(size=(k, d, d))
    which = rng.integers(k, size=n)
    x = np.empty((n, d))
    for i in range(k):
        own = which == i
        x[own] = means[i] + rng.normal(size=(own.sum(), d)) @ lower[i].T
    inverse = np.linalg.inv(lower @ np.swapaxes(lower, 1, 2))
    precisions = 0.5 * (inverse + np.swapaxes(inverse, 1, 2))
    given = {"weights_init": np.full(k, 1 / k), "means_init": means, "precisions_init": precisions}
    return x, given


def nequip_rows(file: str, n: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Features of the most frequent element of a file; k-means starts on them."""
    with np.load(file) as content:
        x, z = content["x"], content["z"]
    own = x[z == np.bincount(z).argmax()].astype(np.float64)
    return np.random.default_rng(0).permutation(own)[:n], {"random_state": 0}


def seconds(function: Callable[[], Any]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def best_times(functions: tuple[Callable[[], Any], ...], repeats: int) -> np.ndarray:
    """Smallest wall and processor time of each function, (2, functions)."""
    times = []
    for _ in range(repeats):
        row = []
        for function in functions:
            cpu = time.process_time()
            wall = seconds(function)
            row.append((wall, time.process_time() - cpu))
        times.append(row)
        if np.sum(times, axis=(0, 1))[0] > PATIENCE:
            break
    return np.min(times, axis=0).T


def blas() -> list[str]:
    """Libraries and kernels that do the matrix products, one line each."""
    from threadpoolctl import threadpool_info

    found = [
        f"{lib['prefix']} {lib['version']}, kernels {lib.get('architecture', '?')}, "
        f"{lib['num_threads']} threads"
        for lib in threadpool_info()
        if lib["user_api"] == "blas"
    ]
    chosen = [f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith("OPENBLAS_")]
    return found + ([f"set by the environment: {', '.join(chosen)}"] if chosen else [])


def product_rate(n: int = 2048) -> float:
    """Flop per second of a large float64 matrix product, all threads."""
    a = np.random.default_rng(0).normal(size=(n, n))
    return 2.0 * n**3 / min(seconds(lambda: a @ a) for _ in range(5))


def flops(evaluator: Evaluator, n: int, em: bool) -> float:
    """Operations of the matrix products of one pass."""
    product = 2.0 * evaluator.n_columns * evaluator.n_product
    width = evaluator.n_features + evaluator.matrix
    stable = 2.0 * evaluator.n_stable * width**2 if evaluator.matrix else 0.0
    whitening = 2.0 * evaluator.n_features**2 * (evaluator.n_product > 0)
    return n * ((product + stable) * (1 + em) + whitening)


def run_case(case: Case, n: int, repeats: int, rate: float, features: str = "") -> dict[str, float]:
    """Time one case; print its line."""
    x, start = nequip_rows(features, n) if case.shape == "nequip" else rows_of(case, n)
    settings = {"covariance_type": case.kind, "max_iter": 2, "tol": 0.0, "reg_covar": 1e-9}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = GaussianMixture(case.n_components, **settings, **start).fit(x)
    p = model._parameters()
    theirs = Reference(case.n_components, covariance_type=case.kind)
    theirs.n_features_in_ = case.n_features

    def reset() -> None:
        for name in ("weights", "means", "covariances", "precisions_cholesky"):
            setattr(theirs, f"{name}_", getattr(p, name).astype(case.dtype))

    reset()

    def their_iteration() -> None:
        responsibilities = theirs._e_step(x)[1]
        theirs._m_step(x, responsibilities)
        reset()

    basis = make_basis(x.mean(0, dtype=float), np.cov(x.T), case.kind)
    rows = LocalRows(x)
    reg = np.full(case.n_features, 1e-9)

    def our_iteration() -> None:
        evaluator = Evaluator([p], basis, tolerance=FIT_TOLERANCE)
        state = State({0: []}, {0: basis}, 0.0, 1, None, {0: [0]}, {0: evaluator})
        maximise(evaluator, 0, rows.reduce(em_chunk, em_combine, state)[0], reg)

    scorer = evaluator_of(p)
    actions = {
        "em": (our_iteration, their_iteration),
        "score": (
            lambda: log_likelihood_rows(evaluator_of(p), x),
            lambda: theirs.score_samples(x),
        ),
    }
    times = {name: best_times(pair, repeats) for name, pair in actions.items()}
    best = {name: t[0].tolist() for name, t in times.items()}
    of_cpu = {name: t[1, 1] / max(t[1, 0], 1e-9) for name, t in times.items()}
    fitter = Evaluator([p], basis, tolerance=FIT_TOLERANCE)
    share = flops(fitter, n, True) / best["em"][0] / rate
    ratio = {name: t[1] / t[0] for name, t in best.items()}
    difference = np.abs(log_likelihood_rows(scorer, x[:5000]) - theirs.score_samples(x[:5000]))
    print(
        f"{case.kind:9s} {case.dtype} {case.n_features:3d} {case.n_components:3d} {case.shape:7s} "
        f"{fitter.n_product:3d}/{case.n_components:<3d} "
        f"{best['em'][0]:8.3f} {best['em'][1]:8.3f} {ratio['em']:6.1f} "
        f"({of_cpu['em']:5.1f}) {case.em_target:4g}   "
        f"{best['score'][0]:8.3f} {best['score'][1]:8.3f} {ratio['score']:6.1f} "
        f"({of_cpu['score']:5.1f}) {case.score_target:4g}   "
        f"{100 * share:5.0f} %   {difference.max():.0e}",
        flush=True,
    )
    return {**ratio, "cpu_em": of_cpu["em"], "cpu_score": of_cpu["score"], "share": share}


def breakdown(case: Case, n: int) -> None:
    """Where the time of one thread goes in the product form: nanoseconds per row."""
    x, start = rows_of(case, n)
    settings = {"covariance_type": "full", "max_iter": 1, "tol": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = GaussianMixture(case.n_components, **settings, **start).fit(x)
    e = Evaluator([model._parameters()], make_basis(x.mean(0), np.cov(x.T), "full"))
    b, d, k = min(e.block, n), case.n_features, case.n_components
    t, phi, joint = np.empty((d, b)), np.empty((e.n_columns, b)), np.empty((k + 1, b))
    own = joint[:k]

    ring = np.empty((d + d // 2, b))

    def columns() -> None:
        np.copyto(phi[1 : 1 + d], ring[:d])
        quadratic_columns(ring, d, phi[1 + d :])

    def soften() -> None:
        top = own.max(axis=0)
        np.subtract(own, top, out=own)
        np.exp(own, out=own)
        total = own.sum(axis=0)
        np.log(total)
        np.multiply(own, 1.0 / total, out=own)

    steps: dict[str, Callable[[], Any]] = {
        "transpose and centre": lambda: np.subtract(x[:b].T, e.basis.centre[:, None], out=t),
        "whiten": lambda: np.matmul(e.ring, t, out=ring),
        "columns": columns,
        "first product": lambda: np.matmul(e.coefficients[: k + 1], phi, out=joint),
        "exp and sums": soften,
        "second product": lambda: phi @ own.T,
    }
    phi[0] = 1.0
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        for step in steps.values():
            step()
        best = {s: 1e9 * min(seconds(f) for _ in range(30)) / b for s, f in steps.items()}
        whole = min(
            seconds(lambda: e.evaluate(x[: 4 * b], statistics=e.new_statistics())) for _ in range(5)
        )
    total = 1e9 * whole / min(4 * b, n)
    print(f"\none thread, {d} features, {k} components, blocks of {b} rows: {total:.0f} ns a row")
    for name, value in best.items():
        print(f"  {name:22s} {value:7.1f} ns {100 * value / total:4.0f} %")
    rest = total - sum(best.values())
    print(f"  {'rest':22s} {rest:7.1f} ns {100 * rest / total:4.0f} %")


def main(argv: list[str] | None = None) -> list[dict[str, float]]:
    """Run the benchmark; the ratios of each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="full")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of the lines wanted, from 0")
    parser.add_argument("--features", default="", help="of a potential, for the line nequip")
    options = parser.parse_args(argv)
    n = SIZES[options.size]
    rate = product_rate(256 if options.size == "tiny" else 2048)
    print(
        f"{n} rows, {threads()} threads; large matrix products: {rate / 1e9:.0f} Gflop/s",
        *blas(),
        f"{'':9s} {'':2s} {'d':>3s} {'K':>3s} {'shape':7s} {'product':7s} "
        f"{'EM s':>8s} {'sklearn':>8s} {'ratio':>6s} {'(CPU)':>7s} {'goal':>4s}   "
        f"{'score s':>8s} {'sklearn':>8s} {'ratio':>6s} {'(CPU)':>7s} {'goal':>4s}   "
        f"{'of rate':>7s}   difference of the log-likelihood",
        sep="\n",
        flush=True,
    )
    wanted = [*range(len(CASES))] if options.only is None else options.only
    if not options.features:
        wanted = [i for i in wanted if CASES[i].shape != "nequip"]
    results = [run_case(CASES[i], n, options.repeats, rate, options.features) for i in wanted]
    for i in {0, 1} & set(wanted):
        breakdown(CASES[i], min(n, 65_536))
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
