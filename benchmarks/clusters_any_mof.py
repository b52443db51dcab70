"""Does a cluster around each kind of core converge at its declared charge? GFN1-xTB, closed shells.

    python benchmarks/clusters_any_mof.py [--size tiny|full] [--wheel core_mof.whl] [NAME ...]

Names are those of CoRE MOF 2019 (`benchmarks/frameworks_core_mof.py` says where its files come
from), by default some of every head (`HEADS`). Prints for each kind of core: composition, atoms,
charge, HOMO-LUMO gap (eV), the smallest distance in sums of covalent radii, and whether it
converged. Mantles are partial where a whole one passes `--max-atoms`.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii
from ase.units import Bohr, Hartree

SIZES = {"tiny": 1, "full": 4}
HEADS = {
    "EDUSIF_clean": "carboxylate on Zn4O (MOF-5)",
    "RUBTAK03_auto": "carboxylate on Zr6 (UiO-66)",
    "KANDIO_clean": "carboxylate on Zn2, pyridine",
    "SABVUN_clean_h_min": "carboxylate and OH, rod (MIL-53)",
    "DOYBEA_freeONLY": "carboxylate and OH, rod (Al fumarate)",
    "ZONBAH_clean": "carboxylate and oxide, rod (MIL-140)",
    "VOGTIV_clean_h": "carboxylate and phenolate, rod (MOF-74)",
    "BEDYEQ_clean": "porphyrin with Fe (PCN-222; open shell)",
    "XEHSIN_clean": "formate",
    "NOQLOV_charged": "oxalate, with ammonium",
    "REGLOG_clean": "alkoxide",
    "OFERUN_clean": "imidazolate (ZIF-8)",
    "DUKYOZ_clean": "pyrazolate",
    "QUNMUI_clean": "triazolate",
    "MOGVAG_clean": "tetrazolate, oxalate, sulfate",
    "NUDLAA_clean": "adeninate (bio-MOF-1)",
    "KUQWIE_clean": "phosphonate",
    "OGAGEJ_clean": "phosphite, pyridine",
    "WEMNAF_freeONLY": "sulfonate, triazole",
    "FOJBIR_freeONLY": "sulfonate, triazole",
    "FUDQIF_clean": "SiF6, pyrazine (SIFSIX-3-Zn)",
    "KECRAL10_clean": "cyanide",
    "ERUFUS_clean": "thiocyanate, pyridine",
    "LIVTEP_charged": "nitrile, with PF6",
    "NOFQOQ_freeONLY": "iodide, pyrazole",
}
"""Files by what holds their metals, known and drawn; shells are closed but the porphyrin's."""
# Metals whose d or f shell is partly filled are taken as closed: the question is convergence.
CLOSED = "Ti V Cr Mn Fe Co Ni Cu Mo Ru Rh Pd Ce Pr Nd Sm Eu Gd Tb Dy Ho Er Tm Yb W Re Os Ir Pt"


def files(names: Sequence[str], wheel: Path | None) -> Iterator[tuple[str, str]]:
    """Text of the first file of each name."""
    from frameworks_core_mof import archives

    left = set(names)
    for archive in archives(wheel).values():
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            for member in tar:
                stem = Path(member.name).stem
                name = next((n for n in left if n in (stem, stem.split("_")[0])), None)
                handle = tar.extractfile(member) if name else None
                if name and handle:
                    left.discard(name)
                    yield name, handle.read().decode("latin-1")


def xtb(atoms: Atoms, charge: int, unpaired: int) -> tuple[bool, float]:
    """Whether GFN1-xTB converges, and the gap in eV."""
    from tblite.interface import Calculator

    calc = Calculator("GFN1-xTB", atoms.numbers, atoms.positions / Bohr, float(charge), unpaired)
    calc.set("verbosity", 0)
    # As mofal's reference does: once more, mixed in smaller steps, where it does not converge.
    for damping in (0.4, 0.1):
        calc.set("mixer-damping", damping)
        calc.set("max-iter", 250)
        try:
            result = calc.singlepoint()
            break
        except RuntimeError:
            continue
    else:
        return False, float("nan")
    energy, filled = result.get("orbital-energies"), result.get("orbital-occupations")
    if energy.ndim > 1:
        energy, filled = energy[0], filled[0]
    homo = energy[filled > filled.max() / 2].max()
    above = energy[filled <= filled.max() / 2]
    return True, float((above.min() - homo) * Hartree)


def _cut_paired(
    ds: xr.Dataset, blocks: dict[str, xr.Dataset], core: xr.Dataset, max_atoms: int | None
) -> tuple[xr.Dataset, xr.Dataset]:
    """A cluster with no unpaired electron; where they are odd, one on each metal of an element."""
    from mofal.clusters import cut

    metals = [s for s in CLOSED.split() if (ds["numbers"].values == atomic_numbers[s]).any()]
    for odd in [None, *metals]:
        unpaired = {s: int(s == odd) for s in CLOSED.split()}
        found, refused = cut(ds, blocks, core, shells=1, max_atoms=max_atoms, unpaired=unpaired)
        if found.sizes["structure"] or "number of electrons" not in str(refused["reason"].values):
            break
    return found, refused


def clusters_of(
    ds: xr.Dataset, most: int, max_atoms: int | None = None
) -> Iterator[tuple[str, Atoms | None, int, str]]:
    """Formula of the core, its cluster and charge, or why there is none; one of each kind.

    Open shells have as few unpaired electrons as their number allows.
    """
    from mofal.data import to_atoms
    from mofal.frameworks import find_blocks

    name = str(ds["system"].values[0])
    blocks = find_blocks(ds)
    _, first = np.unique(blocks["kind"].values, return_index=True)
    linked = [k for k in first.tolist() if str(blocks["role"].values[k]) != "guest"]
    for k in linked[:most]:
        core = xr.Dataset({"core_structure": ("core", [0]), "core_block": ("core", [k])})
        found, refused = _cut_paired(ds, {name: blocks}, core, max_atoms)
        text = str(blocks["formula"].values[k])
        if found.sizes["structure"]:
            yield text, to_atoms(found, 0), int(found["charge"][0]), ""
        else:
            yield text, None, 0, str(refused["reason"].values[0])


def main(argv: Sequence[str] | None = None) -> int:
    """Read, cut, compute, print."""
    from mofal.errors import MofalError
    from mofal.frameworks import read_framework
    from mofal.reference.xtb import unpaired_valence

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--wheel", type=Path)
    parser.add_argument("--max-atoms", type=int, default=130, help="of a cluster")
    args = parser.parse_args(argv)
    good = total = 0
    with tempfile.TemporaryDirectory() as folder:
        names = args.names or list(HEADS)[: None if args.size == "full" else 1]
        for name, text in files(names, args.wheel):
            path = Path(folder) / f"{name}.cif"
            path.write_bytes(text.encode("latin-1"))
            try:
                ds = read_framework(path)
            except MofalError as error:
                print(f"{name}: {error}", flush=True)
                continue
            print(f"{name}, {HEADS.get(name, '')}: {ds.attrs['notes']}", flush=True)
            for core, atoms, charge, why in clusters_of(ds, SIZES[args.size], args.max_atoms):
                if atoms is None:
                    print(f"{name} {core}: {why}", flush=True)
                    continue
                d = atoms.get_all_distances() + 9 * np.eye(len(atoms))
                radii = covalent_radii[atoms.numbers]
                near = (d / (radii[:, None] + radii[None])).min()
                start = time.process_time()
                electrons = int(atoms.numbers.sum()) - charge
                done, gap = xtb(atoms, charge, unpaired_valence(atoms.numbers, electrons % 2))
                total += 1
                good += done
                print(
                    f"{name} {core}: {atoms.get_chemical_formula('hill')} {len(atoms)} atoms, "
                    f"charge {charge:+d}, {'converged' if done else 'NOT CONVERGED'}, gap "
                    f"{gap:.2f} eV, nearest {near:.2f}, {time.process_time() - start:.0f} s",
                    flush=True,
                )
    print(f"{good} of {total} clusters converged")
    return 0


if __name__ == "__main__":
    sys.exit(main())
