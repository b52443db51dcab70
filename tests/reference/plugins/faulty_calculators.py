"""ASE calculators that fail in every way a reference can, found by import path in the tests."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import ClassVar

import numpy as np
from ase.calculators.calculator import Calculator, SCFError, all_changes
from ase.calculators.lj import LennardJones


class Springs(Calculator):
    """Every atom on a spring to the origin: cheap, exact, with a stress for crystals."""

    implemented_properties: ClassVar = ["energy", "forces", "stress"]

    def __init__(self, stiffness=1.0, fault="", count_in=None, seconds=0.0):
        super().__init__()
        self.stiffness, self.fault = stiffness, fault
        self.count_in, self.seconds = count_in, seconds

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        x = self.atoms.positions
        if self.count_in:
            self._count()
        time.sleep(self.seconds)
        forces = -self.stiffness * x
        energy = 0.5 * self.stiffness * float((x**2).sum())
        if self.fault == "nan-forces":
            forces[0, 0] = np.nan
        elif self.fault == "nan-energy":
            energy = np.nan
        elif self.fault == "raise":
            raise RuntimeError("the basis set fell over")
        elif self.fault == "scf":
            raise SCFError("no luck")
        elif self.fault == "memory":
            raise MemoryError("2 TB, please")
        elif self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.fault == "kill-twice":
            if len(os.listdir(self.count_in)) < 3:
                os.kill(os.getpid(), signal.SIGKILL)
        elif self.fault == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "density.tmp")
        elif self.fault == "forbidden":
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), "density.tmp")
        elif self.fault == "program":
            subprocess.run(["no-such-program"], check=True)
        elif self.fault == "import":
            import_module("no_such_module")
        elif self.fault == "exit":
            os._exit(0)
        elif self.fault == "sleep":
            time.sleep(60)
        elif self.fault == "hoard":
            code = "import time; x = bytearray(b'x') * 10**9; time.sleep(99)"
            subprocess.run(["setsid", "-f", sys.executable, "-c", code], check=True)
            time.sleep(60)
        elif self.fault == "move":
            atoms.positions += 0.1
        elif self.fault == "shape":
            forces = forces[:-1]
        self.results = {"energy": energy, "forces": forces, "stress": np.arange(6.0)}

    def _count(self):
        """Leave one file per calculation, named after the structure."""
        from mofal.reference import structure_id_of

        name = f"{structure_id_of(self.atoms)}-{os.getpid()}-{time.monotonic_ns()}"
        Path(self.count_in, name).touch()


class SinglePrecision(Springs):
    """A network of others, in single: its parts are made in torch's default, and its input too."""

    def __init__(self):
        import torch

        super().__init__()
        self.network = torch.nn.Linear(3, 1)
        weights = {"weight": torch.full((1, 3), 1 / 3), "bias": torch.zeros(1)}
        self.network.load_state_dict(weights)
        self._ask(torch.ones(3, dtype=torch.float32))

    def _ask(self, x):
        return float(self.network(x).detach())

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        import torch

        self.stiffness = self._ask(torch.ones(3))
        super().calculate(atoms, properties, system_changes)


class SingleWhenAsked(SinglePrecision):
    """Made in single whatever the default is; its input is not, which shows when asked."""

    def __init__(self):
        import torch

        Springs.__init__(self)
        self.network = torch.nn.Linear(3, 1, dtype=torch.float32)
        with torch.no_grad():
            self.network.weight.fill_(1 / 3)
            self.network.bias.zero_()

    def _ask(self, x):
        time.sleep(0.05)  # so long that those of several threads meet
        return super()._ask(x)


class NeedsFile(Springs):
    """Springs that cannot be made without a file."""

    def __init__(self, path=""):
        super().__init__()
        Path(path).read_text()


class NoStress(Springs):
    """Springs that know no stress."""

    implemented_properties: ClassVar = ["energy", "forces"]


class FiniteOnly(LennardJones):
    """A pair potential up to 3 Å for whom a crystal is too large."""

    def __init__(self):
        super().__init__(epsilon=0.2, sigma=1.0, rc=3.0)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        if atoms.pbc.any():
            raise MemoryError("2 TB, please")
        super().calculate(atoms, properties, system_changes)


class FiniteOrLucky(LennardJones):
    """A pair potential up to 3 Å that labels a crystal only where its first atom lies low."""

    def __init__(self, below=0.0):
        super().__init__(epsilon=0.2, sigma=1.0, rc=3.0)
        self.below = below

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        if atoms.pbc.any() and atoms.positions[0, 0] > self.below:
            raise RuntimeError("the node fell over")
        super().calculate(atoms, properties, system_changes)


class Unlucky(LennardJones):
    """A pair potential up to 3 Å; the first clusters fail, each in another way of `Springs`."""

    faults: ClassVar = ["nan-forces", "raise", "kill", "sleep"]

    def __init__(self, count_in="."):
        super().__init__(epsilon=0.2, sigma=1.0, rc=3.0)
        self.count_in, self.unlucky = count_in, None

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        if self.unlucky is None and len(atoms) > 1 and not atoms.pbc.any():
            self.atoms = atoms.copy()
            self.unlucky = self._draw()
        if self.unlucky:
            self.unlucky.calculate(atoms, properties, system_changes)
            self.results = self.unlucky.results
        else:
            super().calculate(atoms, properties, system_changes)

    def _draw(self):
        from mofal.reference import structure_id_of

        mine = structure_id_of(self.atoms)
        for fault in self.faults:
            try:
                Path(self.count_in, fault).mkdir()
                Path(self.count_in, fault, mine).touch()
            except FileExistsError:
                if not Path(self.count_in, fault, mine).exists():
                    continue
            return Springs(fault=fault)
        return False


class EggBox(Calculator):
    """Springs seen through a grid: a force that ripples along each axis with where an atom is."""

    implemented_properties: ClassVar = ["energy", "forces"]

    def __init__(self, stiffness=1.0, ripple=0.02, period=0.05):
        super().__init__()
        self.stiffness, self.ripple, self.period = stiffness, ripple, period

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        x = self.atoms.positions
        centred = x - x.mean(axis=0)
        forces = -self.stiffness * centred + self.ripple * np.sin(2 * np.pi * x / self.period)
        self.results = {"energy": 0.5 * float((centred**2).sum()), "forces": forces}
