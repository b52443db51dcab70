"""The E-step and the sufficient statistics of Gaussian mixtures, block by block.

The log-density of a Gaussian is linear in the columns [1, z, vech(z zᵀ)], so that the joint
log-densities of all components of all models are *one* matrix product, and their sufficient
statistics one more (the product form). It loses digits for components that are much narrower than
the data; for those the rows are multiplied with the stacked Cholesky factors of the precisions,
squared and summed (the stable form). Which one is used is decided by an error bound: a priori for
each component, and again for each row that is met. Where narrow components hardly overlap, the
product form tells which of them matter to a row, and only these are evaluated (`entries`).

Everything inside has the rows of the data along the *last* axis: building a column, a maximum over
components or a sum over features are then operations on contiguous memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np

from mofal.density.basis import Basis
from mofal.density.columns import Workspace, pair_indices, quadratic_columns
from mofal.density.entries import (
    DENSE,
    FEWEST,
    GUIDE_TOLERANCE,
    NEGLIGIBLE,
    Entries,
    accumulate_entries,
    evaluate_entries,
)
from mofal.density.parameters import Parameters, log_norms, stacked_cholesky
from mofal.density.sparse import (
    FEWEST_EACH,
    MANY,
    Guide,
    Pairs,
    add_moments,
    evaluate_pairs,
    look,
    product_sums,
)
from mofal.errors import DataError

UNIT_ROUNDOFF = 2.0**-53
SCORE_TOLERANCE = 1e-10
"""Largest error of a log-likelihood ℓ that the product form may make, relative to max(1, |ℓ|)."""
FIT_TOLERANCE = 1e-9
"""The same while fitting: the lower bound is a mean over rows and is asked for to 1e-8."""
_PRODUCT_BYTES = 3 * 2**20
_STABLE_BYTES = 3 * 2**18
_MAX_BLOCK = 2048

Visitor = Callable[[int, slice, np.ndarray], None]


@dataclass
class Statistics:
    """Weighted sums over rows; adding two of them is all there is to combining chunks.

    Attributes
    ----------
    weight : float
        Sum of the row weights.
    log_likelihood : ndarray, shape (models,)
        Weighted sum of the log-likelihoods under each model.
    product : ndarray, shape (product components, columns)
        Σ r φ(z): number, first and second moments in whitened coordinates.
    stable : ndarray
        The same for stable components, in their own coordinates y = Pᵀ(x - μ): Σ r [y 1][y 1]ᵀ,
        shape (stable components, d + 1, d + 1); for diagonal covariances Σ r [y² y 1], shape
        (stable components, 3, d).
    total : ndarray
        Σ w z zᵀ (tied covariances only; empty otherwise).
    """

    weight: float
    log_likelihood: np.ndarray
    product: np.ndarray
    stable: np.ndarray
    total: np.ndarray

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Share:
    """Where the components of one model live: `order` lists them, product form first."""

    order: np.ndarray
    product: slice
    stable: slice

    @property
    def pure(self) -> bool:
        return self.product.start == self.product.stop or self.stable.start == self.stable.stop


class Evaluator:
    """Several mixtures over the same features, ready to be evaluated and to gather statistics.

    Parameters
    ----------
    models : list of Parameters
        All of one covariance type and one number of features.
    basis : Basis
        Coordinates of the product form.
    tolerance : float
        Error allowed to the product form, relative to max(1, |ℓ|).
    form : {"auto", "product", "stable"}
        ``"auto"`` decides by the error bound.
    """

    def __init__(
        self,
        models: list[Parameters],
        basis: Basis,
        *,
        tolerance: float = SCORE_TOLERANCE,
        form: str = "auto",
    ) -> None:
        self.models = models
        self.basis = basis
        self.kind = models[0].covariance_type
        self.n_features = d = models[0].n_features
        self.tolerance = tolerance if form == "auto" else np.inf
        self.matrix = self.kind in ("full", "tied")
        # Columns of the product form.
        self.n_columns = {"full": 1 + d + d * (d + 1) // 2, "tied": 1 + d}.get(self.kind, 1 + 2 * d)
        # Rounding of a sum of so many terms grows like the square root of their number (Higham and
        # Mary, 2019); the constants hold with a margin of two for everything that was measured.
        root = np.sqrt(self.n_columns)
        self.gain = UNIT_ROUNDOFF * (2.0 * root + 8.0 if self.kind == "tied" else root + 6.0)

        chol = np.concatenate([stacked_cholesky(m) for m in models])
        shift = np.concatenate([m.means for m in models]) - basis.centre
        self.norms = np.concatenate([log_norms(m) for m in models])
        self._model_of = np.repeat(np.arange(len(models)), [m.n_components for m in models])
        self.means = np.concatenate([m.means for m in models])
        self._prepare_stable(chol, shift, tolerance)
        coefficients, amplification, error, fits = self._prepare_product(chol, shift)

        mask = {"product": np.ones_like(fits), "stable": np.zeros_like(fits)}.get(form, fits)
        if form == "auto" and mask.sum() < _fewest_for_product(self.kind, d):
            mask = np.zeros_like(fits)
        self.shares: list[Share] = []
        chosen_product: list[np.ndarray] = []
        chosen_stable: list[np.ndarray] = []
        start = p = s = 0
        for m in models:
            own = mask[start : start + m.n_components]
            if self.kind == "tied" and not own.all():
                own = np.zeros_like(own)
            products, stables = np.flatnonzero(own), np.flatnonzero(~own)
            self.shares.append(
                Share(
                    np.concatenate([products, stables]),
                    slice(p, p + products.size),
                    slice(s, s + stables.size),
                )
            )
            chosen_product.append(products + start)
            chosen_stable.append(stables + start)
            p, s, start = p + products.size, s + stables.size, start + m.n_components
        self.product_index = np.concatenate(chosen_product)
        self.stable_index = np.concatenate(chosen_stable)
        self.n_product, self.n_stable = p, s
        self.amplification = np.ascontiguousarray(amplification[:, self.product_index])
        self._worst = {
            share.product.start: self.amplification[:, share.product].max(axis=1).tolist()
            for share in self.shares
            if share.product.start < share.product.stop
        }
        self.guided = (
            form == "auto"
            and self.n_stable >= FEWEST
            and bool((error[self.stable_index] <= GUIDE_TOLERANCE).all())
        )
        guides = self.stable_index if self.guided else self.stable_index[:0]
        self._worst_guide = amplification[:, guides].max(axis=1, initial=0.0).tolist()
        a = coefficients[np.concatenate([self.product_index, guides])]
        if self.kind != "tied":
            # One more row gives |z|² of every row, which the error bound asks for, for nothing.
            a = np.vstack([a, self._norm_row()])
        self.coefficients = np.ascontiguousarray(a)
        self.guide: Guide | None = None
        if self.kind == "full":
            self.ring = np.concatenate([basis.forward, basis.forward[: d // 2]])
            if form == "auto" and self.norms.size >= FEWEST_EACH * len(models):
                self.guide = self._make_guide(chol, coefficients, amplification)
        self.block = self._block_size()

    # ------------------------------------------------------------------------- preparation
    def _prepare_stable(self, chol: np.ndarray, shift: np.ndarray, tolerance: float) -> None:
        """Stacked factors: y = Pᵀ(x - centre) - Pᵀ(μ - centre), or (x - μ)/σ.

        For matrices t = x - centre and y are given one more row of ones: the shift is then part of
        the product with the factors, and number and first moments part of the second moments.
        `distant` are components so many of their own widths away from the centre that the
        difference loses too many digits: for those μ is subtracted first.
        """
        if not self.matrix:
            self.factors = np.ascontiguousarray(chol)
            self.distant = np.ones(shift.shape[0], bool)
            return
        k, d = shift.shape
        self.factors = np.zeros((k, d + 1, d + 1))
        self.factors[:, :d, :d] = np.swapaxes(chol, 1, 2)
        self.offsets = np.einsum("kji,kj->ki", chol, shift)
        self.factors[:, :d, d] = -self.offsets
        self.factors[:, d, d] = 1.0
        root = np.sqrt(d)
        error = 2.0 * root * UNIT_ROUNDOFF * np.linalg.norm(self.offsets, axis=1) * (root + 3.0)
        self.distant = error > 0.5 * tolerance

    def _prepare_product(
        self, chol: np.ndarray, shift: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Coefficients on the columns; the error bound's three coefficients; the bound for the
        component's own rows; who may use it.

        The rounding error of component k at z is at most about
        gain (½ ‖Λ‖ (|z| + |ν|)² + |c|), Λ its precision and ν its mean in whitened coordinates,
        ‖·‖ the Frobenius norm (which bounds the spectral norm of the absolute values).
        """
        d = self.n_features
        basis = self.basis
        if self.matrix:
            q = np.swapaxes(np.einsum("ij,kil->kjl", basis.backward, chol), 1, 2)
            nu = shift @ basis.forward.T
            precision = np.swapaxes(q, 1, 2) @ q
            self.rotations = np.ascontiguousarray(q)
            linear = np.einsum("kij,ki->kj", q, self.offsets)
            constant = self.norms - 0.5 * (self.offsets**2).sum(1)
            size = np.linalg.norm(precision, axis=(1, 2))
            singular = np.linalg.svd(q, compute_uv=False)
            widest = 1.0 / np.maximum(singular[:, -1], 1e-300)
            narrow = singular[:, 0] * widest
            if self.kind == "full":
                rows, columns = pair_indices(d)
                quadratic = -precision[:, rows, columns]
                quadratic[:, rows == columns] *= 0.5
            else:
                quadratic = np.empty((chol.shape[0], 0))
        else:
            q = chol * basis.backward if basis.diagonal else chol
            nu = shift / basis.backward
            linear = q**2 * nu
            y = q * nu
            constant = self.norms - 0.5 * (y**2).sum(1)
            quadratic = -0.5 * q**2
            size = (q**2).max(1)
            widest = 1.0 / q.min(1)
            narrow = q.max(1) * widest
        coefficients = np.concatenate([constant[:, None], linear, quadratic], axis=1)
        m = np.sqrt((nu**2).sum(1))
        c = np.where(np.isfinite(self.norms), np.abs(self.norms), 0.0)
        amplification = self.gain * np.stack([0.5 * size, size * m, 0.5 * size * m**2 + c])
        reach = m + (np.sqrt(d) + 3.0) * widest
        error = amplification[0] * reach**2 + amplification[1] * reach + amplification[2]
        # The second condition keeps the errors of far rows, which are relative, far below 1.
        fits = (error <= self.tolerance) & (self.gain * narrow**2 < 1e-4)
        return coefficients, amplification, error, fits

    def _make_guide(
        self, chol: np.ndarray, coefficients: np.ndarray, amplification: np.ndarray
    ) -> Guide:
        k, d = self.means.shape
        factors = np.zeros((k, d + 1, d + 1))
        factors[:, :d, :d] = chol
        factors[:, d, d] = 1.0
        cuts = np.cumsum([0, *(m.n_components for m in self.models)]).tolist()
        a, b, c = amplification.max(axis=1).tolist()
        return Guide(
            np.ascontiguousarray(np.vstack([coefficients, self._norm_row()])),
            (a, b, c),
            [slice(*pair) for pair in pairwise(cuts)],
            np.concatenate([self.means, np.zeros((k, 1))], axis=1),
            factors,
            self.norms,
        )

    def _norm_row(self) -> np.ndarray:
        d = self.n_features
        row = np.zeros(self.n_columns)
        if self.kind == "full":
            rows, columns = pair_indices(d)
            row[1 + d :] = rows == columns
        else:
            row[1 + d :] = 1.0
        return row

    def _block_size(self) -> int:
        """Rows whose intermediate arrays stay in the caches of a core, as measured."""
        block = _PRODUCT_BYTES // (8 * (self.n_columns + self.coefficients.shape[0]))
        self.dense_block = int(np.clip(block // 64 * 64, 64, _MAX_BLOCK))
        if self.n_stable:
            width = self.n_stable * (self.n_features + self.matrix)
            stable = max(_STABLE_BYTES // (8 * width), 128)
            self.dense_block = int(np.clip(min(block, stable) // 64 * 64, 64, _MAX_BLOCK))
        if self.guided:
            return int(np.clip(block // 64 * 64, 64, _MAX_BLOCK))
        return self.dense_block

    # ------------------------------------------------------------------------- evaluation
    def new_statistics(self) -> Statistics:
        d = self.n_features
        stable = (self.n_stable, d + 1, d + 1) if self.matrix else (self.n_stable, 3, d)
        tied = self.kind == "tied" and self.n_product > 0
        return Statistics(
            0.0,
            np.zeros(len(self.models)),
            np.zeros((self.n_product, self.n_columns)),
            np.zeros(stable),
            np.zeros((d, d) if tied else (0, 0)),
        )

    def evaluate(
        self,
        x: np.ndarray,
        *,
        weights: np.ndarray | None = None,
        statistics: Statistics | None = None,
        out: np.ndarray | None = None,
        visit: Visitor | None = None,
        numbers: np.ndarray | int = 0,
    ) -> None:
        """Go once over rows.

        Parameters
        ----------
        x : ndarray, shape (n, d)
            Rows, float32 or float64; arithmetic is float64.
        weights : ndarray, shape (n,), optional
        statistics : Statistics, optional
            Is added to.
        out : ndarray, shape (models, n), optional
            Receives log-likelihoods.
        visit : callable, optional
            ``visit(model, rows, responsibilities)`` with shape (K, rows), in the order of the
            model's components.
        numbers : ndarray or int
            Global numbers of the rows, or of the first one, for messages.

        Raises
        ------
        DataError
            A row holds NaN or infinity.
        """
        work = self._workspace()
        with np.errstate(all="ignore"):
            first = 0
            if self.guide is not None and visit is None:
                first = self._sparse(self.guide, work, x, weights, statistics, out, numbers)
            start = first
            while start < x.shape[0]:
                # Where too much matters once, it is not asked again.
                guided = self.guided and not work.dense
                stop = min(start + (self.block if guided else self.dense_block), x.shape[0])
                rows = slice(start, stop)
                w = None if weights is None else weights[rows]
                self._block(work, x[rows], w, statistics, out, visit, rows, numbers, guided)
                start = stop

    def _sparse(
        self,
        guide: Guide,
        work: Workspace,
        x: np.ndarray,
        weights: np.ndarray | None,
        statistics: Statistics | None,
        out: np.ndarray | None,
        numbers: np.ndarray | int,
    ) -> int:
        """Go over rows as long as few components matter to them; how many rows were done."""
        n, d = x.shape
        k = self.norms.size
        sums = np.zeros((k, d + 1, d + 1))
        done = 0
        while done < n:
            part = x[done : done + MANY]
            near = np.empty((k, part.shape[0]), bool)
            top = np.empty((len(self.models), part.shape[0]))

            def columns(rows: slice, part: np.ndarray = part) -> np.ndarray:
                t = work.take("t", rows.stop - rows.start)
                np.subtract(part[rows].T, self.basis.centre[:, None], out=t[:d])
                return self._columns(t, work)

            far = look(guide, columns, near, top, lambda size: work.take("guide", size))
            if far is None:
                break
            pairs = evaluate_pairs(guide, part, near, top, far)
            if not np.isfinite(pairs.log_likelihood.sum()):
                _refuse_bad_rows(part, done, numbers)
                self._repeat_pairs(pairs, part)
            rows = slice(done, done + part.shape[0])
            if out is not None:
                out[:, rows] = pairs.log_likelihood
            if statistics is not None:
                if weights is not None:
                    pairs.share *= weights[rows][pairs.rows]
                    pairs.log_likelihood *= weights[rows]
                statistics.weight += float(
                    part.shape[0] if weights is None else weights[rows].sum()
                )
                statistics.log_likelihood += pairs.log_likelihood.sum(axis=1)
                add_moments(pairs, sums)
            done = rows.stop
        if statistics is not None and done:
            chosen = self.product_index
            statistics.stable += sums[self.stable_index]
            statistics.product += product_sums(
                sums[chosen], self.rotations[chosen], self.offsets[chosen]
            )
        return done

    def _repeat_pairs(self, pairs: Pairs, x: np.ndarray) -> None:
        """Rows so far out that no component tells anything of them: they count for none."""
        lost = np.flatnonzero(~np.isfinite(pairs.log_likelihood).all(axis=0))
        t = np.ones((self.n_features + 1, lost.size))
        np.subtract(x[lost].T, self.basis.centre[:, None], out=t[:-1])
        for model in range(len(self.models)):
            pairs.log_likelihood[model, lost] = self._repeat(model, x[lost], t)[0]
        out = np.isin(pairs.rows, lost)
        pairs.share[out] = 0.0
        pairs.y[out] = 0.0

    def _block(
        self,
        work: Workspace,
        x: np.ndarray,
        w: np.ndarray | None,
        statistics: Statistics | None,
        out: np.ndarray | None,
        visit: Visitor | None,
        rows: slice,
        numbers: np.ndarray | int,
        guided: bool,
    ) -> None:
        n = x.shape[0]
        t = work.take("t", n)
        np.subtract(x.T, self.basis.centre[:, None], out=t[: self.n_features])
        phi = joint = y = stable = entries = None
        square = top = np.empty(0)
        if self.n_product or guided:
            phi = self._columns(t, work)
            joint = work.take("joint", n)
            size = self.coefficients.shape[0]
            np.matmul(self.coefficients, phi, out=joint[:size])
            if self.kind == "tied":
                square = np.einsum("ij,ij->j", phi[1:], phi[1:])
            elif size < joint.shape[0]:  # log-densities of stable components come in its place
                square = work.take("square", n)
                np.copyto(square, joint[size - 1])
            else:
                square = joint[-1]
        if guided:
            assert phi is not None
            assert joint is not None
            stable = joint[self.n_product : self.n_product + self.n_stable]
            entries, top = self._entries(x, phi, joint, stable, square, work)
            if entries is None:
                # Too many of them, or too inexact a guide: the whole block, in smaller pieces.
                for start in range(0, n, self.dense_block):
                    part = slice(start, min(start + self.dense_block, n))
                    w_part = None if w is None else w[part]
                    there = slice(rows.start + part.start, rows.start + part.stop)
                    self._block(
                        work, x[part], w_part, statistics, out, visit, there, numbers, False
                    )
                return
        elif self.n_stable:
            y = work.take("y", n)
            raw = work.take("raw", n) if self.distant[self.stable_index].any() else None
            where = work.take("stable", n) if joint is None else joint[self.n_product :]
            stable = self._stable(x, t, self.stable_index, y, where[: self.n_stable], raw)
        respond = statistics is not None or visit is not None
        if entries is not None and not respond and len(self.shares) == 1 and not self.n_product:
            log_likelihood = entries.log_likelihood(top)
            if np.isfinite(log_likelihood.sum()):
                if out is not None:
                    out[0, rows] = log_likelihood
                return
        for model, share in enumerate(self.shares):
            l_k = self._gather(share, joint, stable)
            quadratic = None
            if self.kind == "tied" and share.product.stop > share.product.start:
                assert phi is not None
                quadratic = self._common(self.product_index[share.product.start], phi)
            total, log_likelihood = _soften(l_k)
            if quadratic is not None:
                log_likelihood -= quadratic
            again = self._to_repeat(share, l_k, total, square, log_likelihood)
            finite = bool(np.isfinite(log_likelihood.sum()))
            if not finite:
                _refuse_bad_rows(x, rows.start, numbers)
                again = np.union1d(again, np.flatnonzero(~np.isfinite(log_likelihood)))
            if respond and l_k.shape[0] > 1:
                l_k *= total
            if again.size:
                repeated, responsibilities = self._repeat(model, x[again], t[:, again])
                log_likelihood[again] = repeated
                if respond:
                    l_k[:, again] = responsibilities[share.order]
            if out is not None:
                out[model, rows] = log_likelihood
            if visit is not None:
                ordered = np.empty_like(l_k)
                ordered[share.order] = l_k
                visit(model, rows, ordered)
            if statistics is not None:
                if w is not None:
                    l_k *= w
                    log_likelihood *= w
                statistics.log_likelihood[model] += log_likelihood.sum()
                if not share.pure and len(self.shares) > 1:
                    n_p = share.product.stop - share.product.start
                    assert joint is not None
                    assert stable is not None
                    joint[share.product] = l_k[:n_p]
                    stable[share.stable] = l_k[n_p:]
        if statistics is not None:
            statistics.weight += float(n if w is None else w.sum())
            self._accumulate(statistics, work, phi, joint, y, stable, w)
            if entries is not None:
                assert stable is not None
                accumulate_entries(entries, stable, statistics.stable, matrix=self.matrix)

    def _common(self, component: int, phi: np.ndarray) -> np.ndarray:
        """½ |Pᵀ(x - centre)|² (n,), which all components of a tied model have in common."""
        z = self.rotations[component] @ phi[1:]
        return 0.5 * np.einsum("ij,ij->j", z, z)

    def _entries(
        self,
        x: np.ndarray,
        phi: np.ndarray,
        joint: np.ndarray,
        stable: np.ndarray,
        square: np.ndarray,
        work: Workspace,
    ) -> tuple[Entries | None, np.ndarray]:
        """Repeat in the stable form what matters, with the largest log-density of each row (n,) of
        the last model as the product form has it; None where what matters would be most, or where
        a row is so far out that the product form cannot tell."""
        top = np.empty(0)
        reach = float(np.sqrt(square.max()))
        a, b, c = self._worst_guide
        if not a * reach**2 + b * reach + c <= GUIDE_TOLERANCE:
            return None, top
        near = np.empty(stable.shape, bool)
        for share in self.shares:
            if share.stable.start == share.stable.stop:
                continue
            own = stable[share.stable]
            if self.kind == "tied":
                own -= self._common(self.stable_index[share.stable.start], phi)
            top = own.max(axis=0)
            if share.product.start < share.product.stop:
                np.maximum(top, joint[share.product].max(axis=0), out=top)
            np.greater(own, top - NEGLIGIBLE, out=near[share.stable])
        if np.count_nonzero(near) > DENSE * near.size:
            work.dense = True
            return None, top
        raw = work.take("raw", x.shape[0])
        np.copyto(raw, x.T)
        chosen = self.stable_index
        factors = self.factors[chosen]
        if self.matrix:
            factors = np.ascontiguousarray(factors[:, :-1, :-1])
        norms = self.norms[chosen]
        return evaluate_entries(near, raw, self.means[chosen], factors, norms, stable), top

    def _workspace(self) -> Workspace:
        d, k = self.n_features, self.n_stable
        width = d + self.matrix
        joint = self.coefficients.shape[0]
        if self.n_product and not self.guided:
            joint = self.n_product + k + 1
        shapes: dict[str, tuple[int, ...]] = {
            "t": (width,),
            "ring": (d + d // 2,),
            "phi": (self.n_columns,),
            "joint": (joint,),
            "square": (),
            "guide": (self.norms.size + 1,),
            "raw": (d,),
            "y": (k, width),
            "weighted": (k, width),
            "stable": (k,),
        }
        return Workspace(shapes, {"phi": 0, "t": d} if self.matrix else {"phi": 0})

    def _columns(self, t: np.ndarray, work: Workspace) -> np.ndarray:
        """[1, z, products of z] of centred rows t (d, n)."""
        d = self.n_features
        phi = work.take("phi", t.shape[1])
        z = phi[1 : 1 + d]
        if self.basis.diagonal:
            np.multiply(t[:d], self.basis.forward[:, None], out=z)
            np.multiply(z, z, out=phi[1 + d :])
        elif self.kind == "tied":
            np.matmul(self.basis.forward, t[:d], out=z)
        else:
            ring = work.take("ring", t.shape[1])
            np.matmul(self.ring, t[:d], out=ring)
            np.copyto(z, ring[:d])
            quadratic_columns(ring, d, phi[1 + d :])
        return phi

    def _stable(
        self,
        x: np.ndarray,
        t: np.ndarray,
        index: np.ndarray,
        y: np.ndarray | None = None,
        joint: np.ndarray | None = None,
        raw: np.ndarray | None = None,
    ) -> np.ndarray:
        """Joint log-densities (k, n) of the components `index`; y (k, d, n) is kept in `y`."""
        k, n = index.size, t.shape[1]
        y = np.empty((k, *t.shape)) if y is None else y
        factors = self.factors[index]
        distant = np.flatnonzero(self.distant[index])
        if distant.size:
            raw = np.empty((self.n_features, n)) if raw is None else raw
            np.copyto(raw, x.T)
        if self.matrix and distant.size == k:
            y[:, -1] = 1.0
        elif self.kind == "tied":
            # One factor per model: rotate once, then shift for each component.
            for a, b in _runs(self._model_of[index]):
                turned = factors[a] @ t
                np.add(turned, (factors[a:b, :, -1] - factors[a, :, -1])[:, :, None], out=y[a:b])
        elif self.matrix:
            np.matmul(factors.reshape(-1, t.shape[0]), t, out=y.reshape(-1, n))
        else:
            assert raw is not None
            np.subtract(raw, self.means[index][:, :, None], out=y)
            y *= factors[:, :, None]
        if self.matrix:
            for i in distant:
                near = raw - self.means[index[i]][:, None]
                np.matmul(factors[i, :-1, :-1], near, out=y[i, :-1])
        joint = np.einsum("kdn,kdn->kn", y, y, out=joint)
        joint *= -0.5
        # The row of ones has added one to the square.
        joint += (self.norms[index] + (0.5 if self.matrix else 0.0))[:, None]
        return joint

    def _gather(
        self, share: Share, joint: np.ndarray | None, stable: np.ndarray | None
    ) -> np.ndarray:
        """Joint log-densities of one model: a view where it uses one form only."""
        if joint is None or share.product.start == share.product.stop:
            assert stable is not None
            return stable[share.stable]
        if stable is None or share.stable.start == share.stable.stop:
            return joint[share.product]
        if len(self.shares) == 1:
            return joint[: self.n_product + self.n_stable]  # side by side
        return np.concatenate([joint[share.product], stable[share.stable]])

    def _to_repeat(
        self,
        share: Share,
        l_k: np.ndarray,
        inverse_total: np.ndarray,
        square: np.ndarray,
        log_likelihood: np.ndarray,
    ) -> np.ndarray:
        """Rows whose error bound under the product form exceeds the tolerance."""
        n_p = share.product.stop - share.product.start
        none = np.empty(0, np.intp)
        if n_p == 0 or not np.isfinite(self.tolerance):
            return none
        coefficients = self.amplification[:, share.product]
        worst = self._worst[share.product.start]
        reach = float(np.sqrt(square.max()))
        if worst[0] * reach**2 + worst[1] * reach + worst[2] <= self.tolerance:
            return none
        # First-order propagation: the error of ℓ is the mean of the components' errors, weighted
        # with their responsibilities.
        a, b, c = (coefficients @ l_k[:n_p]) * inverse_total
        error = a * square + b * np.sqrt(square) + c
        return np.flatnonzero(~(error <= self.tolerance * np.maximum(1.0, np.abs(log_likelihood))))

    def _repeat(self, model: int, x: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log-likelihoods (n,) and responsibilities (K, n), every component in the stable form."""
        start = sum(m.n_components for m in self.models[:model])
        index = np.arange(start, start + self.models[model].n_components)
        log_likelihood = np.empty(t.shape[1])
        responsibilities = np.empty((index.size, t.shape[1]))
        for a in range(0, t.shape[1], 256):
            rows = slice(a, a + 256)
            joint = self._stable(x[rows], np.ascontiguousarray(t[:, rows]), index)
            top = joint.max(axis=0)
            joint -= np.where(np.isfinite(top), top, 0.0)
            np.exp(joint, out=joint)
            total = joint.sum(axis=0)
            log_likelihood[rows] = np.log(total) + np.where(np.isfinite(top), top, 0.0)
            responsibilities[:, rows] = joint / np.where(total > 0, total, 1.0)
        return log_likelihood, responsibilities

    def _accumulate(
        self,
        statistics: Statistics,
        work: Workspace,
        phi: np.ndarray | None,
        joint: np.ndarray | None,
        y: np.ndarray | None,
        stable: np.ndarray | None,
        w: np.ndarray | None,
    ) -> None:
        if phi is not None and joint is not None and self.n_product:
            # This way round BLAS packs the wide factor once; the other way takes a third longer.
            statistics.product += (phi @ joint[: self.n_product].T).T
            if self.kind == "tied":
                z = phi[1:]
                statistics.total += (z if w is None else z * w) @ z.T
        if y is not None and stable is not None:
            if self.matrix:
                weighted = np.multiply(y, stable[:, None, :], out=work.take("weighted", y.shape[2]))
                statistics.stable += np.matmul(weighted, np.swapaxes(y, 1, 2))
            else:
                r = stable[:, :, None]
                statistics.stable[:, 2] += stable.sum(axis=1)[:, None]
                statistics.stable[:, 1] += np.matmul(y, r)[:, :, 0]
                y *= y
                statistics.stable[:, 0] += np.matmul(y, r)[:, :, 0]


def _soften(l_k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Joint log-densities (K, n), in place, to numbers proportional to responsibilities.

    Returns what they are to be multiplied with, and the log-likelihoods, both (n,).
    """
    if l_k.shape[0] == 1:
        log_likelihood = l_k[0].copy()
        l_k[0] = 1.0
        return l_k[0], log_likelihood
    top = l_k.max(axis=0)
    l_k -= top
    np.exp(l_k, out=l_k)
    total = l_k.sum(axis=0)
    log_likelihood = np.log(total)
    log_likelihood += top
    np.reciprocal(total, out=total)
    return total, log_likelihood


def _runs(values: np.ndarray) -> list[tuple[int, int]]:
    """Starts and stops of runs of equal values."""
    cuts = np.flatnonzero(np.diff(values)) + 1
    return list(zip([0, *cuts.tolist()], [*cuts.tolist(), values.size]))


def _fewest_for_product(kind: str, d: int) -> int:
    """Below so many components the columns cost more than they save."""
    if kind == "full":
        return max(2, (d + 2) // 3)
    return 2 if kind == "tied" else 1


def _refuse_bad_rows(x: np.ndarray, start: int, numbers: np.ndarray | int) -> None:
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if bad.size:
        at = start + int(bad[0])
        row = int(numbers[at]) if isinstance(numbers, np.ndarray) else numbers + at
        raise DataError(
            f"row {row} contains NaN or infinity (and {bad.size - 1} more rows near it); "
            "drop such rows first: x = x[numpy.isfinite(x).all(axis=1)]"
        )
