"""Elastic constants at 0 K: finite strains with relaxed ions, symmetrised, averaged, judged.

Under pressure the derivative of the Cauchy stress gives the stress-strain coefficients B_ij, whose
positive definiteness is Born's criterion (Wallace, Thermodynamics of Crystals, 1972); at zero
stress they are C_ij.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms, units
from numpy.typing import NDArray

from mofal.data import hash_json
from mofal.errors import ConfigError
from mofal.mechanics.curve import Record, _plain
from mofal.mechanics.levels import Level
from mofal.mechanics.pieces import CALLS, Piece
from mofal.mechanics.relaxation import Criteria, relax
from mofal.reference.ase_calculator import limit_threads

if TYPE_CHECKING:
    import xarray as xr

VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
"""Index pairs in ASE's Voigt order: xx yy zz yz xz xy."""


@dataclass(frozen=True)
class ElasticSettings:
    """How elastic constants are made.

    Attributes
    ----------
    amplitudes : tuple of float
        Strains (engineering for shears), each with both signs; two at least, so that the linear
        regime can be checked.
    criteria : Criteria
        Of the relaxation of the ions.
    tolerance : float
        Length (Å) within which spglib finds symmetry.
    """

    amplitudes: tuple[float, ...] = (0.0025, 0.005)
    criteria: Criteria = field(default_factory=lambda: Criteria(max_force=0.0005))
    tolerance: float = 0.02

    def __post_init__(self) -> None:
        good = all(0 < a < 0.1 for a in self.amplitudes)
        if not self.amplitudes or not good or len(set(self.amplitudes)) < len(self.amplitudes):
            raise ConfigError(
                f"amplitudes are {self.amplitudes}, expected different ones between 0 and 0.1"
            )
        if not self.tolerance > 0:
            raise ConfigError(f"tolerance is {self.tolerance}, expected a length in Å")


def strain_matrix(component: int, amplitude: float) -> NDArray[np.float64]:
    """Symmetric strain (3, 3) of one Voigt component; the amplitude of a shear is 2 ε."""
    out = np.zeros((3, 3))
    i, j = VOIGT[component]
    out[i, j] += 0.5 * amplitude
    out[j, i] += 0.5 * amplitude
    return out


class Elastic:
    """Elastic constants of a relaxed point, strain by strain.

    Parameters
    ----------
    system : str
    source : path
        Record of the relaxed structure (`Curve.point("minimum")`, or any volume of a curve).
    level : Level
    directory : path
    settings : ElasticSettings, optional
    """

    def __init__(
        self,
        system: str,
        source: Path,
        level: Level,
        *,
        directory: str | Path,
        settings: ElasticSettings | None = None,
    ) -> None:
        self.settings = settings or ElasticSettings()
        self.system, self.source, self.level = system, Path(source), level
        # The directory of the source carries the identity of its curve.
        where = [self.source.parent.parent.name, self.source.name]
        self.key = hash_json(_plain([where, level.key, asdict(self.settings)]))
        self.place = Path(directory) / f"elastic-{self.key[:10]}"
        self._sound, self._n_atoms = False, 0

    def prepare(self) -> None:
        """Nothing is to be written before."""

    def record(self, component: int, amplitude: float) -> Path:
        """Record of one strain."""
        return self.place / "strains" / f"{component}{amplitude:+.6f}.npz"

    def pieces(self) -> list[Piece]:
        """One relaxation of the ions per strain; none before the structure is relaxed."""
        if not self.sound:
            return []
        out = []
        for component in range(6):
            for amplitude in self.settings.amplitudes:
                for signed in (amplitude, -amplitude):
                    path = self.record(component, signed)
                    kwargs = {
                        "source": str(self.source.absolute()),
                        "output": str(path.absolute()),
                        "component": component,
                        "amplitude": signed,
                        "level": asdict(self.level),
                        "criteria": asdict(self.settings.criteria),
                    }
                    name = f"strain {'xyz'[VOIGT[component][0]]}{'xyz'[VOIGT[component][1]]}"
                    out.append(
                        Piece(
                            "strain",
                            f"{self.system} {name} {signed:+.4f}",
                            relax_strain,
                            kwargs,
                            path,
                            (self.source,),
                            float(CALLS["strain"] * self._n_atoms),
                            key=hash_json([self.key, str(self.place), component, f"{signed:.6f}"]),
                        )
                    )
        return out

    @property
    def sound(self) -> bool:
        """Whether there is a relaxed structure to strain."""
        if not self._sound and self.source.exists():
            source = Record.load(self.source)
            self._sound, self._n_atoms = source.status == "relaxed", len(source.numbers)
        return self._sound

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.sound and all(piece.done for piece in self.pieces())

    def forget_failed(self) -> int:
        """Remove strains that failed; returns how many."""
        failed = [
            p.output for p in self.pieces() if p.done and Record.load(p.output).status != "relaxed"
        ]
        for path in failed:
            path.unlink(missing_ok=True)
        return len(failed)

    def gather(self) -> ElasticConstants:
        """Put the stresses together.

        Raises
        ------
        ConfigError
            A strain failed; says which.
        """
        n = len(self.settings.amplitudes)
        slopes = np.zeros((n, 6, 6))
        for component in range(6):
            for k, amplitude in enumerate(sorted(self.settings.amplitudes)):
                stress = []
                for signed in (amplitude, -amplitude):
                    found = Record.load(self.record(component, signed))
                    if found.status != "relaxed":
                        raise ConfigError(
                            f"{self.system}: strain {found.name}: {found.status}: {found.reason}"
                        )
                    stress.append(found.stress / units.GPa)
                slopes[k, :, component] = (stress[0] - stress[1]) / (2 * amplitude)
        return elastic_constants(
            slopes,
            sorted(self.settings.amplitudes),
            Record.load(self.source),
            tolerance=self.settings.tolerance,
        )


def relax_strain(
    *,
    source: str,
    output: str,
    component: int,
    amplitude: float,
    level: dict[str, Any],
    criteria: dict[str, Any],
) -> dict[str, Any]:
    """Relax the ions of a strained cell and write the stress."""
    atoms = Record.load(Path(source)).atoms
    change = np.identity(3) + strain_matrix(component, amplitude)
    atoms.set_cell(atoms.cell.array @ change, scale_atoms=True)
    with limit_threads(1):
        found = relax(
            atoms, Level(**level).calculator(), cell="fixed", criteria=Criteria(**criteria)
        )
    name = f"{component}{amplitude:+.6f}"
    Record.of(found.atoms, name, found, None).save(Path(output))
    pressure = found.pressure_GPa
    return {
        "status": found.status,
        "reason": found.reason,
        "text": f"{pressure:.3f} GPa, {found.force_calls} force calls",
    }


# ---------------------------------------------------------------------------------- arrays
@dataclass(frozen=True)
class ElasticConstants:
    """Elastic constants of a crystal, GPa, in ASE's Voigt order.

    Attributes
    ----------
    raw : (6, 6) array
        Derivatives of the stress as they came: extrapolated to zero amplitude.
    constants : (6, 6) array
        Symmetrised: by the point group, and in its indices.
    pressure : float
        GPa, of the unstrained structure.
    nonlinearity : float
        Largest relative change of the constants between the amplitudes; NaN with one of them.
    asymmetry : float
        Largest difference of raw[i, j] and raw[j, i], GPa.
    symmetry : str
        International symbol that spglib found, with the number of its rotations.
    """

    raw: NDArray[np.float64]
    constants: NDArray[np.float64]
    pressure: float
    nonlinearity: float
    asymmetry: float
    symmetry: str

    @property
    def voigt(self) -> tuple[float, float]:
        """Bulk and shear modulus of Voigt's average (uniform strain), GPa."""
        return voigt_moduli(self.constants)

    @property
    def reuss(self) -> tuple[float, float]:
        """Bulk and shear modulus of Reuss's average (uniform stress), GPa; NaN if unstable."""
        if not self.stable:
            return np.nan, np.nan
        return reuss_moduli(self.constants)

    @property
    def hill(self) -> tuple[float, float]:
        """Mean of Voigt's and Reuss's."""
        (kv, gv), (kr, gr) = self.voigt, self.reuss
        return 0.5 * (kv + kr), 0.5 * (gv + gr)

    @property
    def anisotropy(self) -> float:
        """Universal anisotropy (Ranganathan, Ostoja-Starzewski, PRL 101, 055504 (2008))."""
        (kv, gv), (kr, gr) = self.voigt, self.reuss
        return 5 * gv / gr + kv / kr - 6

    @property
    def modes(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Eigenvalues (6,) GPa, ascending, and eigenstrains (6, 6), as columns, of the constants.

        In Mandel's form, where the eigenvalues do not depend on the axes.
        """
        weight = np.sqrt(np.array([1, 1, 1, 2, 2, 2.0]))
        symmetric = 0.5 * (self.constants + self.constants.T)
        values, vectors = np.linalg.eigh(symmetric * np.outer(weight, weight))
        return values, vectors / weight[:, None] * np.array([1, 1, 1, 2, 2, 2.0])[:, None]

    @property
    def stable(self) -> bool:
        """Born's criterion: all eigenvalues are positive."""
        return bool(self.modes[0][0] > 0)

    @property
    def softest(self) -> str:
        """Eigenvalue and strain of the softest mode, as text."""
        values, vectors = self.modes
        names = ("xx", "yy", "zz", "yz", "xz", "xy")
        v = vectors[:, 0] / np.abs(vectors[:, 0]).max()
        v = v * np.sign(v[np.argmax(np.abs(v))])
        parts = [f"{x:+.2f} {n}" for x, n in zip(v, names) if abs(x) > 0.05]
        return f"{values[0]:.2f} GPa along {' '.join(parts)}"

    def young(self, direction: Sequence[float] | NDArray) -> float:
        """Young's modulus along a Cartesian direction, GPa."""
        n = np.asarray(direction, float) / np.linalg.norm(direction)
        compliance = np.linalg.inv(self.constants)
        stress = np.array([n[i] * n[j] for i, j in VOIGT])
        return float(1.0 / (stress @ compliance @ stress))


def voigt_moduli(c: NDArray) -> tuple[float, float]:
    """Bulk and shear modulus (same unit) for a uniform strain."""
    diagonal, off = c[0, 0] + c[1, 1] + c[2, 2], c[0, 1] + c[0, 2] + c[1, 2]
    shear = c[3, 3] + c[4, 4] + c[5, 5]
    return float(diagonal + 2 * off) / 9, float(diagonal - off + 3 * shear) / 15


def reuss_moduli(c: NDArray) -> tuple[float, float]:
    """Bulk and shear modulus (same unit) for a uniform stress."""
    s = np.linalg.inv(c)
    diagonal, off = s[0, 0] + s[1, 1] + s[2, 2], s[0, 1] + s[0, 2] + s[1, 2]
    shear = s[3, 3] + s[4, 4] + s[5, 5]
    return float(1 / (diagonal + 2 * off)), float(15 / (4 * diagonal - 4 * off + 3 * shear))


def elastic_constants(
    slopes: NDArray, amplitudes: Sequence[float], record: Record, *, tolerance: float
) -> ElasticConstants:
    """Extrapolate slopes (amplitude, 6, 6) in GPa to zero strain, and symmetrise them."""
    squares = np.asarray(amplitudes, float) ** 2
    if len(squares) > 1:
        # Central differences err by the square of the amplitude.
        fit = np.polyfit(squares, slopes.reshape(len(squares), -1), 1)
        raw = fit[1].reshape(6, 6)
        scale = np.abs(slopes).max()
        nonlinear = float(np.abs(slopes[-1] - slopes[0]).max() / scale)
    else:
        raw, nonlinear = slopes[0], np.nan
    rotations, symbol = point_group(record.atoms, tolerance)
    symmetric = symmetrise(0.5 * (raw + raw.T), rotations)
    return ElasticConstants(
        raw,
        symmetric,
        -float(record.stress[:3].mean()) / units.GPa,
        nonlinear,
        float(np.abs(raw - raw.T).max()),
        f"{symbol} ({len(rotations)} rotations)",
    )


def point_group(atoms: Atoms, tolerance: float) -> tuple[NDArray[np.float64], str]:
    """Cartesian rotations (n, 3, 3) of a crystal and its symbol; the identity without spglib."""
    try:
        import spglib
    except ImportError:
        return np.identity(3)[None], "spglib is not installed"
    cell = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
    try:
        found = spglib.get_symmetry_dataset(cell, symprec=tolerance)
    except Exception:  # newer spglib raises what older ones answered with None
        found = None
    if found is None:
        return np.identity(3)[None], "none found"
    lattice = atoms.cell.array.T
    inverse = np.linalg.inv(lattice)
    unique = np.unique(found.rotations, axis=0)
    cartesian = np.array([lattice @ r @ inverse for r in unique])
    # A lattice that is symmetric within the tolerance only gives almost orthogonal matrices.
    u, _, vt = np.linalg.svd(cartesian)
    return u @ vt, str(found.international)


def symmetrise(c: NDArray, rotations: NDArray) -> NDArray[np.float64]:
    """Average of elastic constants (6, 6) over rotations (n, 3, 3)."""
    full = to_tensor(c)
    turned = np.einsum(
        "nai,nbj,nck,ndl,ijkl->abcd", rotations, rotations, rotations, rotations, full,
        optimize=True,
    ) / len(rotations)  # fmt: skip
    return np.array([[turned[i, j, k, m] for k, m in VOIGT] for i, j in VOIGT])


def to_tensor(c: NDArray) -> NDArray[np.float64]:
    """Elastic constants (6, 6) as a tensor (3, 3, 3, 3)."""
    out = np.zeros((3, 3, 3, 3))
    for a, (i, j) in enumerate(VOIGT):
        for b, (k, m) in enumerate(VOIGT):
            for p, q in {(i, j), (j, i)}:
                for r, s in {(k, m), (m, k)}:
                    out[p, q, r, s] = c[a, b]
    return out


def elastic_table(found: ElasticConstants) -> xr.Dataset:
    """Elastic constants as a table (dims ``voigt``, ``voigt_strain``, ``average``) with units."""
    import xarray as xr

    from mofal.data import describe
    from mofal.data.ragged import TEXT

    values, vectors = found.modes
    return describe(
        xr.Dataset(
            {
                "elastic_constants": (("voigt", "voigt_strain"), found.constants),
                "elastic_constants_raw": (("voigt", "voigt_strain"), found.raw),
                "elastic_eigenvalue": ("elastic_mode", values),
                "elastic_eigenstrain": (("voigt", "elastic_mode"), vectors),
                "average_name": ("average", np.array(["Voigt", "Reuss", "Hill"], TEXT)),
                "average_bulk_modulus": (
                    "average", np.array([found.voigt[0], found.reuss[0], found.hill[0]])
                ),
                "average_shear_modulus": (
                    "average", np.array([found.voigt[1], found.reuss[1], found.hill[1]])
                ),
            },
            attrs={
                "pressure_GPa": found.pressure,
                "symmetry": found.symmetry,
                "stable": int(found.stable),
                **({} if np.isnan(found.nonlinearity) else {"nonlinearity": found.nonlinearity}),
                "asymmetry_GPa": found.asymmetry,
            },
        )
    )  # fmt: skip


def describe_elastic(name: str, found: ElasticConstants, eos_modulus: float | None) -> list[str]:
    """Elastic constants as lines of text."""
    kind = "C_ij" if abs(found.pressure) < 0.01 else f"B_ij at {found.pressure:.3f} GPa"
    lines = [f"{name}: {kind} (GPa, xx yy zz yz xz xy), {found.symmetry}"]
    lines += ["  " + " ".join(f"{x:9.3f}" for x in row) for row in found.constants]
    linear = (
        "one amplitude, linearity not checked"
        if np.isnan(found.nonlinearity)
        else f"linear within {100 * found.nonlinearity:.1f} %"
    )
    lines.append(
        f"  {linear}; as they came they are asymmetric by "
        f"{found.asymmetry:.3f} and differ from these by "
        f"{np.abs(found.raw - found.constants).max():.3f} GPa at most"
    )
    if found.stable:
        (kv, gv), (kr, gr), (kh, gh) = found.voigt, found.reuss, found.hill
        lines.append(
            f"  bulk modulus {kv:.2f} (Voigt) {kr:.2f} (Reuss) {kh:.2f} (Hill); "
            f"shear {gv:.2f} {gr:.2f} {gh:.2f} GPa; anisotropy {found.anisotropy:.2f}"
        )
        young = [found.young(axis) for axis in np.identity(3)]
        weakest = "xyz"[int(np.argmin(young))]
        lines.append(
            f"  Young's moduli along x y z {young[0]:.2f} {young[1]:.2f} {young[2]:.2f} GPa"
            + (f"; weak axis {weakest}" if max(young) > 1.1 * min(young) else "")
        )
        if eos_modulus is not None:
            off = 100 * (kr / eos_modulus - 1)
            verdict = "agrees with" if abs(off) <= 3 else "DIFFERS from"
            lines.append(f"  K_Reuss {verdict} K of E(V), {eos_modulus:.2f} GPa ({off:+.1f} %)")
        lines.append(f"  Born: stable; softest mode {found.softest}")
    else:
        lines.append(f"  Born: UNSTABLE: {found.softest}")
    return lines
