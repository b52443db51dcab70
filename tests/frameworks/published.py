"""Frameworks written from published geometry: space group, cell, positions of the sites.

Sources are named at each function. Hydrogens that a diffraction experiment did not see are put
where chemistry wants them, and said so.
"""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.cell import Cell

from mofal.frameworks.bonds import bonds_of

_FCC = ["x,y,z", "x,y+1/2,z+1/2", "x+1/2,y,z+1/2", "x+1/2,y+1/2,z"]


def expand(
    operations: list[str], cell: list[float], sites: list[tuple[str, float, float, float]]
) -> Atoms:
    """Images of sites under symmetry operations written as in a CIF; special positions merge."""
    symbols: list[str] = []
    fractions: list[np.ndarray] = []
    for symbol, x, y, z in sites:
        images: list[np.ndarray] = []
        for operation in operations:
            values = [eval(term, {"x": x, "y": y, "z": z}) for term in operation.split(",")]
            image = np.mod(np.array(values, float), 1.0)
            gaps = [image - other for other in images]
            if not any(np.abs(g - np.rint(g)).max() < 2e-3 for g in gaps):
                images.append(image)
        symbols += [symbol] * len(images)
        fractions += images
    return Atoms(symbols, scaled_positions=fractions, cell=Cell.fromcellpar(cell), pbc=True)


def by_number(
    number: int, cell: list[float], sites: list[tuple[str, float, float, float]]
) -> Atoms:
    """The same by the number of the space group, standard setting."""
    from ase.spacegroup import crystal

    return crystal([s[0] for s in sites], [s[1:] for s in sites], spacegroup=number, cellpar=cell)


def rows(text: str) -> list[tuple[str, float, float, float]]:
    """Sites from lines of symbol, x, y, z."""
    out = []
    for line in text.strip().splitlines():
        symbol, x, y, z = line.split()
        out.append((symbol, float(x), float(y), float(z)))
    return out


def with_hydrogens(atoms: Atoms, which: list[int], length: float) -> Atoms:
    """Put one H on each chosen atom, away from the mean of its neighbours."""
    bonds = bonds_of(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    new = []
    for k in which:
        span = slice(bonds.indptr[k], bonds.indptr[k + 1])
        vectors = atoms.positions[bonds.j[span]] + bonds.shift[span] @ atoms.cell.array
        vectors = vectors - atoms.positions[k]
        out = -(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).sum(axis=0)
        new.append(atoms.positions[k] + length * out / np.linalg.norm(out))
    return atoms + Atoms(["H"] * len(new), positions=new)


def bond_counts(atoms: Atoms) -> np.ndarray:
    """Number of bonds of each atom."""
    return bonds_of(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc).degree


def hkust1() -> Atoms:
    """HKUST-1 without axial water: Chui et al., Science 283, 1148 (1999), Fm-3m."""
    sites = """
    Cu 0.2853 0.2853 0
    O 0.3166 0.2431 0.9478
    C 0.2968 0.2032 0.9313
    C 0.322 0.178 0.887
    C 0.3655 0.1994 0.8655
    H 0.3802 0.228 0.8802
    """
    return by_number(225, [26.343] * 3 + [90] * 3, rows(sites))


def mof5() -> Atoms:
    """MOF-5 (IRMOF-1): Eddaoudi et al., Science 295, 469 (2002), Fm-3m."""
    sites = """
    Zn 0.2934 0.2066 0.2066
    O 0.25 0.25 0.25
    O 0.2819 0.2181 0.134
    C 0.25 0.25 0.1113
    C 0.25 0.25 0.0538
    C 0.2829 0.2171 0.0269
    H 0.3049 0.1951 0.0448
    """
    return by_number(225, [25.832] * 3 + [90] * 3, rows(sites))


def mil53() -> Atoms:
    """MIL-53(Cr)ht: Serre et al., J. Am. Chem. Soc. 124, 13519 (2002), Imcm; rods along c."""
    operations = [
        "x,y,z", "-x+1/2,y,-z", "x+1/2,-y,-z", "-x,-y,z",
        "-x,-y,-z", "x+1/2,-y,z", "-x+1/2,y,z", "x,y,-z",
    ]  # fmt: skip
    centred = [*operations, *(_body_centred(o) for o in operations)]
    sites = """
    Cr 0.25 0.75 0.25
    O 0.25 0.686 0
    O -0.168 0.161 0.167
    C -0.033 0.032 0.179
    C -0.066 0.063 0
    C -0.137 0.132 0
    H 0.25 0.611 0
    H -0.06 0.058 0.329
    """
    return expand(centred, [16.733, 13.038, 6.812, 90, 90, 90], rows(sites))


def _body_centred(operation: str) -> str:
    return ",".join(f"{term}+1/2" for term in operation.split(","))


def mof74() -> Atoms:
    """Mg-MOF-74, relaxed geometry of the structure of Dietzel et al., Eur. J. Inorg. Chem. 2008,
    3624; R-3; rods along c."""
    sites = """
    Mg 0.64159 0.68514 0.47189
    O 0.96943 0.29776 0.36038
    O 0.92763 0.23048 0.6102
    O 0.25494 0.94205 0.67383
    C 0.92667 0.2458 0.42703
    C 0.87918 0.20711 0.29083
    C 0.21254 0.88926 0.7549
    C 0.1663 0.84759 0.63558
    H 0.16529 0.85803 0.47918
    """
    return by_number(148, [26.136, 26.136, 6.942, 90, 90, 120], rows(sites))


def mil125(*, hydroxyl: bool = True) -> Atoms:
    """MIL-125: Dan-Hardi et al., J. Am. Chem. Soc. 131, 10857 (2009), I4/mmm.

    The powder pattern shows no hydrogen on the four mu2-OH; they are put on here.
    """
    sites = """
    Ti 0.2083 0.0740 0.5
    O 0.3111 0.0580 0.5
    O 0.1819 0 0.4265
    O 0.2259 0.1442 0.4268
    O 0.1074 0.1074 0.5
    C 0.3507 0 0.5
    C 0.4265 0 0.5
    C 0.4632 0.0705 0.5
    C 0.194 0.194 0.4023
    C 0.2225 0.2225 0.3209
    C 0.2015 0.2876 0.2898
    H 0.4345 0.1178 0.5
    H 0.1788 0.3273 0.3219
    """
    atoms = rows(sites) + ([("H", 0.0706, 0.0706, 0.5)] if hydroxyl else [])
    return by_number(139, [18.6543, 18.6543, 18.1444, 90, 90, 90], atoms)


def mil88b(*, terminal: str = "water") -> Atoms:
    """MIL-88B(Cr), open form: Serre et al., Science 315, 1828 (2007), P63/mmc.

    Its trimers Cr3O carry three terminal O. ``"water"``: two H2O and one OH, neutral;
    ``"cation"``: three H2O; ``"bare"``: the O alone, as in the file.
    """
    sites = """
    Cr 0.7385513 0.4771026 0.75
    O 0.6666667 0.3333333 0.75
    O 0.6585354 0.4841042 0.8350334
    O 0.808658 0.6173159 0.75
    C 0.5723107 0.4276893 0.8636902
    C 0.535443 0.464557 0.933739
    C 0.4401451 0.4052841 0.9674038
    H 0.3922223 0.3318028 0.9433881
    """
    atoms = by_number(194, [15.6261, 15.6261, 15.9604, 90, 90, 120], rows(sites))
    ends = np.flatnonzero((atoms.numbers == 8) & (bond_counts(atoms) == 1)).tolist()
    if terminal == "bare":
        return atoms
    layers = {round(atoms.positions[k, 2], 1) for k in ends}
    hydroxide = [next(k for k in ends if round(atoms.positions[k, 2], 1) == z) for z in layers]
    water = ends if terminal == "cation" else [k for k in ends if k not in hydroxide]
    out = atoms.copy()
    bonds = bonds_of(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    for k in water:
        edge = bonds.indptr[k]
        toward = atoms.positions[bonds.j[edge]] + bonds.shift[edge] @ atoms.cell.array
        away = atoms.positions[k] - toward
        away /= np.linalg.norm(away)
        side = np.array([0.0, 0.0, 1.0])
        for sign in (1, -1):
            step = 0.59 * away + sign * 0.77 * side
            out += Atoms("H", positions=[atoms.positions[k] + step])
    return out if terminal == "cation" else with_hydrogens(out, hydroxide, 0.97)


def zif(*, methyl: bool = True) -> Atoms:
    """ZIF-8: sodalite zinc imidazolate with the ring of Morris et al., J. Am. Chem. Soc. 130,
    12626 (2008), I-43m, and a methyl group 1.49 Å from C2 (Park et al., PNAS 103, 10186, 2006)."""
    sites = """
    N 0.9143 0.4677 0.1845
    C 0.8603 0.4063 0.1898
    H 0.8627 0.368 0.2292
    C 0.8747 0.4867 0.1253
    Zn 0 0.5 0.25
    """
    atoms = by_number(217, [17.2715] * 3 + [90] * 3, rows(sites))
    open_carbon = np.flatnonzero((atoms.numbers == 6) & (bond_counts(atoms) == 2)).tolist()
    if not methyl:
        return with_hydrogens(atoms, open_carbon, 1.09)
    n = len(atoms)
    grown = with_hydrogens(atoms, open_carbon, 1.49)
    grown.numbers[n:] = 6
    for k, start in enumerate(open_carbon):
        methyl_carbon = grown.positions[n + k]
        axis = methyl_carbon - atoms.positions[start]
        axis /= np.linalg.norm(axis)
        u = np.cross(axis, [0.3, 0.5, 0.8])
        u /= np.linalg.norm(u)
        v = np.cross(axis, u)
        turns = np.radians([0.0, 120.0, 240.0])
        hydrogens = methyl_carbon + 1.09 * (
            axis / 3 + np.sqrt(8) / 3 * (np.cos(turns)[:, None] * u + np.sin(turns)[:, None] * v)
        )
        grown += Atoms("H3", positions=hydrogens)
    return grown


def cobdp() -> Atoms:
    """Co(bdp), a pyrazolate: Choi, Dinca, Long, J. Am. Chem. Soc. 130, 7848 (2008)."""
    sites = """
    C 0.2484 0.00204 0.0741
    C 0.42413 0 0
    C 0.47619 0.99713 0.08739
    C 0.57768 0.99721 0.08432
    C 0.63367 0 0
    C 0.74542 0 0
    C 0.81408 0.97518 0.07753
    C 0.02928 0.77711 0.17478
    C 0.04241 0.21467 0.1865
    C 0 0.27979 0.25002
    C 0 0.37999 0.25002
    C 0.31208 0 0
    C 0.02807 0.44631 0.17678
    C 0.03079 0.55029 0.16992
    C 0 0.60681 0.25002
    C 0 0.71199 0.25002
    Co 0.02943 0.99743 0.12733
    H 0.27058 0.00226 0.13862
    H 0.08081 0.23489 0.13248
    H 0.0498 0.41296 0.12033
    H 0.05259 0.58259 0.1129
    H 0.44111 0.99517 0.14662
    H 0.61337 0.99532 0.14312
    N 0.02392 0.12292 0.20872
    N 0.15212 0.00521 0.05023
    N 0.9053 0.98068 0.04637
    N 0.02271 0.87867 0.20693
    H 0.79341 0.93232 0.12819
    H 0.01652 0.76096 0.10982
    """
    operations = ["x,y,z", "-x,-y,z+1/2", "-x,y,-z+1/2", "x,-y,-z"]
    return expand(operations, [13.253, 13.253, 13.995, 90, 90, 90], rows(sites))


def dmof() -> Atoms:
    """Zn2(bdc)2(dabco), a pillared paddlewheel: distances of Dybtsev, Chun, Kim, Angew. Chem.
    Int. Ed. 43, 5033 (2004); a = 10.91, c = 9.63 Å, ordered dabco."""
    a, c = 10.91, 9.63
    symbols: list[str] = ["Zn", "Zn"]
    x: list[list[float]] = [[0, 0, 1.475], [0, 0, -1.475]]
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    for rotation in (np.eye(3), turn):
        half = [("O", 1.93, 1.13), ("O", 1.93, -1.13), ("C", 2.56, 0.0)]
        for sign in (1, -1):
            for symbol, along, up in half:
                symbols.append(symbol)
                x.append((rotation @ [sign * along, 0, up]).tolist())
        ring = [("C", s * 1.395, 0.0) for s in (1, -1)]
        ring += [("C", s * 0.6975, t * 1.208) for s in (1, -1) for t in (1, -1)]
        ring += [("H", s * 1.2425, t * 2.152) for s in (1, -1) for t in (1, -1)]
        for symbol, along, up in ring:
            symbols.append(symbol)
            x.append((rotation @ [a / 2 + along, 0, up]).tolist())
    for sign in (1, -1):
        symbols.append("N")
        x.append([0, 0, c / 2 + sign * 1.29])
        for angle in np.radians([0.0, 120.0, 240.0]):
            out = np.array([np.cos(angle), np.sin(angle), 0.0])
            side = np.array([-np.sin(angle), np.cos(angle), 0.0])
            carbon = 1.375 * out + np.array([0, 0, c / 2 + sign * 0.77])
            symbols.append("C")
            x.append(carbon.tolist())
            lift = np.array([0.0, 0, sign * 0.35])
            for t in (1, -1):
                h = 0.55 * out + t * 0.88 * side + lift
                symbols.append("H")
                x.append((carbon + 1.09 * h / np.linalg.norm(h)).tolist())
    return Atoms(symbols, positions=x, cell=[a, a, c], pbc=True)


def acid_chain(acid: str) -> Atoms:
    """A chain ...Zn-O-X(O)2-C6H4-X(O)2-O-Zn..., X = S (sulfonate) or P (phosphonate, one OH).

    Made for the rules, from standard bond lengths; periodic along x only.
    """
    element, to_o, to_c = {"sulfonate": ("S", 1.46, 1.77), "phosphonate": ("P", 1.52, 1.80)}[acid]
    symbols: list[str] = []
    x: list[list[float]] = []
    reach = 1.395 + to_c  # ring centre to S or P
    half = reach + to_o * np.cos(np.radians(70.0)) + 1.9
    for sign in (1, -1):
        centre = np.array([sign * reach, 0, 0])
        symbols.append(element)
        x.append(centre.tolist())
        for k, turn in enumerate(np.radians([90.0, 210.0, 330.0])):
            o = centre + to_o * np.array(
                [
                    sign * np.cos(np.radians(70.0)),
                    np.sin(np.radians(70.0)) * np.cos(turn),
                    np.sin(np.radians(70.0)) * np.sin(turn),
                ]
            )
            symbols.append("O")
            x.append(o.tolist())
            if element == "P" and k == 1:
                out = np.array([0.0, np.cos(turn), np.sin(turn)])
                symbols.append("H")
                x.append((o + 0.97 * out).tolist())
    for s in (1, -1):
        symbols.append("C")
        x.append([s * 1.395, 0, 0])
        for t in (1, -1):
            symbols += ["C", "H"]
            x += [[s * 0.6975, t * 1.208, 0], [s * 1.2425, t * 2.152, 0]]
    # The metal, over the first O of either end.
    symbols.append("Zn")
    x.append([half, 0, to_o * np.sin(np.radians(70.0))])
    return Atoms(symbols, positions=x, cell=[2 * half, 0, 0], pbc=[True, False, False])


def nitrile_chain() -> Atoms:
    """A chain ...Ag-NC-C6H4-CN-Ag..., from standard bond lengths; periodic along x only."""
    symbols: list[str] = ["Ag"]
    reach = 1.395 + 1.44 + 1.15 + 2.20  # ring, C-C, C-N, N-Ag
    x: list[list[float]] = [[reach, 0, 0]]
    for s in (1, -1):
        symbols += ["C", "C", "N"]
        x += [[s * 1.395, 0, 0], [s * 2.835, 0, 0], [s * 3.985, 0, 0]]
        for t in (1, -1):
            symbols += ["C", "H"]
            x += [[s * 0.6975, t * 1.208, 0], [s * 1.2425, t * 2.152, 0]]
    return Atoms(symbols, positions=x, cell=[2 * reach, 0, 0], pbc=[True, False, False])


def pyrazolate_chain() -> Atoms:
    """A chain ...Zn(pz-C6H4-pz)Zn..., each Zn on both N of two rings; periodic along x only.

    Made for the rules, from standard bond lengths.
    """
    symbols: list[str] = []
    x: list[list[float]] = []
    ring = [("C", 2.87, 0.0), ("C", 3.70, 1.11), ("N", 4.98, 0.69), ("H", 3.40, 2.16)]
    for s in (1, -1):
        symbols.append("C")
        x.append([s * 1.395, 0, 0])
        for t in (1, -1):
            symbols += ["C", "H"]
            x += [[s * 0.6975, t * 1.208, 0], [s * 1.2425, t * 2.152, 0]]
        for symbol, along, up in ring:
            for t in (1, -1) if up else (1,):
                symbols.append(symbol)
                x.append([s * along, t * up, 0])
    symbols.append("Zn")
    x.append([6.9, 0, 0])
    return Atoms(symbols, positions=x, cell=[13.8, 0, 0], pbc=[True, False, False])
