"""Arrays of a batch of systems: NumPy on a CPU, torch on a GPU, one code above both.

Everything is flat along atoms, system after system. Each operation gives a system the same bits
whether it is alone or among others: sums run over the atoms of one system in their order, and small
matrices are multiplied system by system.
"""

from __future__ import annotations

from typing import Any

import numpy as np

EXPONENTIAL_TERMS = 6
"""Of the series of a matrix exponential: exact to rounding for strains of a step up to 0.01."""


class NumpyArrays:
    """Operations that NumPy and torch name differently, for NumPy."""

    device = "cpu"

    def real(self, values: Any) -> Any:
        """Floating-point array; a copy."""
        return np.array(values, np.float64)

    def whole(self, values: Any) -> Any:
        """Array of whole numbers; a copy."""
        return np.array(values, np.int64)

    def host(self, values: Any) -> np.ndarray:
        """As a NumPy array."""
        return np.asarray(values)

    def sqrt(self, values: Any) -> Any:
        """Square root."""
        return np.sqrt(values)

    def exp(self, values: Any) -> Any:
        """Exponential."""
        return np.exp(values)

    def join(self, parts: list[Any]) -> Any:
        """Concatenate along the first dim."""
        return np.concatenate(parts)

    def sums(self, values: Any, first: Any, system: Any) -> Any:
        """Sum (s, ...) of rows (n, ...) over each system."""
        return np.add.reduceat(values, first, axis=0)

    def largest(self, values: Any, first: Any, system: Any) -> Any:
        """Largest (s,) of values (n,) of each system; NaN where there is one."""
        return np.maximum.reduceat(values, first)

    def all_finite(self, values: Any) -> bool:
        """Whether everything is a number."""
        return bool(np.isfinite(values).all())

    def squares(self, rows: Any) -> Any:
        """Squared length (n,) of rows (n, 3)."""
        square = rows * rows
        return square[:, 0] + square[:, 1] + square[:, 2]

    def carry(self, rows: Any, matrices: Any, parts: list[slice], system: Any) -> Any:
        """Rows (n, 3) times the matrix (s, 3, 3) of their system, system by system."""
        out = np.empty_like(rows)
        for part, matrix in zip(parts, matrices):
            np.matmul(rows[part], matrix, out=out[part])
        return out

    def tensors(self, one: Any, two: Any, parts: list[slice], first: Any, system: Any) -> Any:
        """Σ aᵀ b (s, 3, 3) over the rows of each system."""
        return np.stack([one[part].T @ two[part] for part in parts])

    def noise(self, generators: list[Any], parts: list[slice], shape: tuple[int, ...]) -> Any:
        """Normal numbers of each system's own generator."""
        out = np.empty(shape)
        for generator, part in zip(generators, parts):
            generator.standard_normal(out=out[part])
        return out


class TorchArrays:
    """The same for torch on one device."""

    def __init__(self, device: str) -> None:
        import torch

        self.torch, self.device = torch, device

    def real(self, values: Any) -> Any:
        """Floating-point tensor on the device; a copy."""
        t = self.torch
        if isinstance(values, t.Tensor):
            return values.detach().to(self.device, t.float64, copy=True)
        return t.tensor(np.asarray(values, np.float64), device=self.device)

    def whole(self, values: Any) -> Any:
        """Tensor of whole numbers on the device; a copy."""
        return self.torch.tensor(np.asarray(values, np.int64), device=self.device)

    def host(self, values: Any) -> np.ndarray:
        """As a NumPy array."""
        if isinstance(values, self.torch.Tensor):
            return values.detach().cpu().numpy()
        return np.asarray(values)

    def sqrt(self, values: Any) -> Any:
        """Square root."""
        return self.torch.sqrt(values)

    def exp(self, values: Any) -> Any:
        """Exponential."""
        return self.torch.exp(values)

    def join(self, parts: list[Any]) -> Any:
        """Concatenate along the first dim."""
        return self.torch.cat(parts)

    def sums(self, values: Any, first: Any, system: Any) -> Any:
        """Sum (s, ...) of rows (n, ...) over each system."""
        out = self.torch.zeros(
            (len(first), *values.shape[1:]), dtype=values.dtype, device=values.device
        )
        return out.index_add_(0, system, values)

    def largest(self, values: Any, first: Any, system: Any) -> Any:
        """Largest (s,) of values (n,) of each system; NaN where there is one."""
        out = self.torch.full((len(first),), -np.inf, dtype=values.dtype, device=values.device)
        return out.scatter_reduce_(0, system, values, "amax")

    def all_finite(self, values: Any) -> bool:
        """Whether everything is a number."""
        return bool(self.torch.isfinite(values).all())

    def squares(self, rows: Any) -> Any:
        """Squared length (n,) of rows (n, 3)."""
        return (rows * rows).sum(dim=1)

    def carry(self, rows: Any, matrices: Any, parts: list[slice], system: Any) -> Any:
        """Rows (n, 3) times the matrix (s, 3, 3) of their system."""
        return self.torch.einsum("na,nab->nb", rows, matrices[system])

    def tensors(self, one: Any, two: Any, parts: list[slice], first: Any, system: Any) -> Any:
        """Σ aᵀ b (s, 3, 3) over the rows of each system."""
        return self.sums(one[:, :, None] * two[:, None, :], first, system)

    def noise(self, generators: list[Any], parts: list[slice], shape: tuple[int, ...]) -> Any:
        """Normal numbers of each system's own generator."""
        return self.real(NumpyArrays().noise(generators, parts, shape))


Arrays = NumpyArrays | TorchArrays


def product(one: Any, two: Any) -> Any:
    """Matrix products (s, 3, 3), each by itself."""
    return one @ two


def exponential(matrices: Any, unit: Any) -> Any:
    """Matrix exponentials (s, 3, 3) of small matrices, by Horner's scheme; `unit` is (1, 3, 3)."""
    out = unit + matrices / float(EXPONENTIAL_TERMS)
    for k in range(EXPONENTIAL_TERMS - 1, 0, -1):
        out = unit + product(matrices, out) / float(k)
    return out


def trace(matrices: Any) -> Any:
    """Traces (s,) of matrices (s, 3, 3)."""
    return matrices[:, 0, 0] + matrices[:, 1, 1] + matrices[:, 2, 2]


def symmetric(matrices: Any) -> Any:
    """Symmetric parts of matrices (s, 3, 3)."""
    return 0.5 * (matrices + matrices.swapaxes(1, 2))


def determinant(cells: Any) -> Any:
    """Determinants (s,) of matrices (s, 3, 3)."""
    a, b, c = cells[:, 0], cells[:, 1], cells[:, 2]
    x = a[:, 0] * (b[:, 1] * c[:, 2] - b[:, 2] * c[:, 1])
    y = a[:, 1] * (b[:, 0] * c[:, 2] - b[:, 2] * c[:, 0])
    z = a[:, 2] * (b[:, 0] * c[:, 1] - b[:, 1] * c[:, 0])
    return x - y + z
