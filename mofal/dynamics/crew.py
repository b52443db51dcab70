"""Walkers in a batch: advanced together, checked together; one that ends makes room for the next.

What is checked at every step is checked for all at once, and by the letter (which atom, which bond)
only where something is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import units
from numpy.typing import NDArray

from mofal.dynamics.arrays import determinant, product, trace
from mofal.dynamics.checks import check_bond_strain, check_cell, check_distances, check_motion
from mofal.dynamics.engine import Engine
from mofal.dynamics.integrator import Integrator, Member
from mofal.dynamics.limits import check_limits
from mofal.dynamics.walker import Walker
from mofal.dynamics.watch import Place


def run_crew(walkers: Sequence[Walker], engine: Engine, *, together: int) -> None:
    """Walk all walkers to their ends, at most `together` in a batch."""
    waiting = list(walkers)[::-1]
    crew = Crew(engine, walkers[0].settings.ensemble) if walkers else None
    key = 0
    while crew is not None and (waiting or crew.walkers):
        fresh: list[tuple[Walker, Member]] = []
        while waiting and len(crew.walkers) + len(fresh) < together:
            walker = waiting.pop()
            member = walker.member()
            if member is not None:
                member.key = key
                key += 1
                fresh.append((walker, member))
        crew.join(fresh)
        crew.advance()


class Crew:
    """Walkers under way, and the arrays of all of them."""

    def __init__(self, engine: Engine, ensemble: str) -> None:
        self.walkers: list[Walker] = []
        self.integrator = Integrator(engine, ensemble, [])
        self._lost: dict[int, str] = {}

    # ------------------------------------------------------------------ who is in it
    def join(self, fresh: Sequence[tuple[Walker, Member]]) -> None:
        """Take in walkers: those at their very start are looked at first.

        What an engine raises on a start frame is the caller's to see: that set-up cannot work.
        """
        starting = [(w, m) for w, m in fresh if "forces" not in m.state]
        if starting:
            trial = Crew(self.integrator.engine, self.integrator.ensemble)
            trial.walkers = [w for w, _ in starting]
            trial.integrator.gather([m for _, m in starting])
            for text in trial.integrator.outcome.failed.values():
                raise RuntimeError(text)
            trial._gather_limits()
            trial._begin()
            trial.integrator.scatter()
        staying = [(w, m) for w, m in fresh if not w.ended]
        if staying:
            self._company(
                [*zip(self.walkers, self.integrator.members), *staying],
            )

    def _company(self, pairs: Sequence[tuple[Walker, Member]]) -> None:
        self._scatter_means()
        self.walkers = [w for w, _ in pairs]
        self.integrator.gather([m for _, m in pairs])
        self._gather_limits()

    def _leave(self) -> None:
        """Let those go that have ended."""
        pairs = [p for p in zip(self.walkers, self.integrator.members) if not p[0].ended]
        if len(pairs) < len(self.walkers):
            self._company(pairs)

    def _gather_limits(self) -> None:
        """Limits of all walkers as arrays."""
        xp, walkers = self.integrator.xp, self.walkers
        if not walkers:
            return
        s = [w.settings for w in walkers]
        self._max_force = xp.real([x.max_force**2 for x in s])
        self._max_temperature = xp.real([x.max_temperature * x.temperature_K for x in s])
        self._steps = np.array([w.step for w in walkers])
        if self.integrator.flexible:
            self._inverse_start = xp.real(np.linalg.inv(np.stack([w.start_cell for w in walkers])))
            self._max_stretch = xp.real([(1.0 - 1.0 / x.max_stretch) ** 2 for x in s])
        self._gather_bonds()

    def _gather_bonds(self) -> None:
        xp, first = self.integrator.xp, self.integrator.systems.first
        pairs, shifts, expected, system, most, most_mean, share = [], [], [], [], [], [], []
        self._bond_rows: dict[int, slice] = {}
        n = 0
        for k, walker in enumerate(self.walkers):
            if walker.bonds is None or len(walker.bonds[0]) == 0:
                continue
            settings, count = walker.settings, len(walker.bonds[0])
            self._bond_rows[k] = slice(n, n + count)
            n += count
            pairs.append(walker.bonds[0] + first[k])
            shifts.append(walker.bonds[1])
            expected.append(walker.bonds[2])
            system.append(np.full(count, k))
            limit = np.full(count, np.inf)
            mean = np.full(count, np.inf)
            if settings.max_bond_strain is not None:
                limit = np.minimum(limit, settings.max_bond_strain)
            if walker.limits is not None:
                if settings.bond_z is not None:
                    limit = np.minimum(limit, settings.bond_z * walker.limits.spread)
                if settings.bond_mean_z is not None:
                    mean = settings.bond_mean_z * walker.limits.spread
            most.append(limit)
            most_mean.append(mean)
            share.append(np.full(count, min(1.0, settings.timestep_fs / settings.bond_mean_fs)))
        self._bonded = bool(n)
        if not n:
            return
        joined = np.concatenate(pairs)
        self._bond_first, self._bond_second = xp.whole(joined[:, 0]), xp.whole(joined[:, 1])
        self._bond_shifts = xp.real(np.concatenate(shifts))
        self._expected = xp.real(np.concatenate(expected))
        self._bond_system = xp.whole(np.concatenate(system))
        self._most, self._most_mean = (
            xp.real(np.concatenate(most)),
            xp.real(np.concatenate(most_mean)),
        )
        self._share = xp.real(np.concatenate(share))
        self._mean = xp.real(np.concatenate([self.walkers[k].bond_mean for k in self._bond_rows]))
        self._strain = self._strains()

    def _scatter_means(self) -> None:
        for k, rows in getattr(self, "_bond_rows", {}).items():
            if k < len(self.walkers):
                self.walkers[k].bond_mean = np.array(self.integrator.xp.host(self._mean[rows]))

    # ------------------------------------------------------------------ a start
    def _begin(self) -> None:
        """Look at start frames: save them, check them, sample them."""
        temperatures = self._host(self.integrator.temperatures())
        for k, walker in enumerate(self.walkers):
            walker.save(self.integrator.state(k))
            problem = self._motion(k, temperatures) or self._distances(k)
            broken = "" if problem else self._bonds(k)
            if problem or broken:
                status = "exploded" if problem else "bond_broken"
                walker.end(status, f"start frame: {problem or broken}")
            elif walker.watch is not None:
                walker.watch.begin(self._quantile(k))
                walker.at_start = int(walker.watch.from_start.sum())
        alive = [k for k, w in enumerate(self.walkers) if not w.ended]
        if alive:
            self._sample(alive)
        for k in alive:
            self.walkers[k].save(self.integrator.state(k))

    # ------------------------------------------------------------------ steps
    def advance(self) -> None:
        """Step until one of the walkers has ended, and let it go."""
        while self.walkers and not any(w.ended for w in self.walkers):
            self._step()
        self._leave()

    def _step(self) -> None:
        integrator, walkers = self.integrator, self.walkers
        self._lost = {}
        self._before = integrator.positions, integrator.cells
        fault = ""
        try:
            with np.errstate(all="ignore"):
                integrator.step(self._sane)
        except (MemoryError, OSError, ImportError):  # the machine, not the walk
            raise
        except Exception as error:
            if len(walkers) > 1:
                raise
            fault = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        failed = {0: fault} if fault else integrator.outcome.failed
        self._steps += 1
        for walker, step in zip(walkers, self._steps):
            walker.step = int(step)
        for k, text in self._lost.items():
            walkers[k].end("exploded", text)
        for k, text in failed.items():
            if not walkers[k].ended:
                walkers[k].end("crashed", text)
        if fault:
            return
        self._check()

    def _sane(self) -> None:
        """Take back a move to where nothing can be computed; such a walker ends with this step."""
        integrator = self.integrator
        xp = integrator.xp
        if xp.all_finite(integrator.positions) and xp.all_finite(integrator.cells):
            return
        positions, cells = np.array(self._host(integrator.positions)), self._host(integrator.cells)
        before, cells_before = self._host(self._before[0]), self._host(self._before[1])
        cells = np.array(cells)
        for k, rows in enumerate(integrator._rows):
            if not (np.isfinite(positions[rows]).all() and np.isfinite(cells[k]).all()):
                positions[rows], cells[k] = before[rows], cells_before[k]
                self._lost[k] = "a position, momentum or force is not a finite number"
        integrator.positions, integrator.cells = xp.real(positions), xp.real(cells)

    def _check(self) -> None:
        """Everything that is looked at after a step, for all walkers."""
        integrator, walkers = self.integrator, self.walkers
        temperature = integrator.temperatures()
        good = (integrator.largest_forces() <= self._max_force) & (
            temperature <= self._max_temperature
        )
        if integrator.flexible:
            change = product(self._inverse_start, integrator.cells) - integrator.unit
            good = good & (trace(product(change, change.swapaxes(1, 2))) <= self._max_stretch)
        good = self._host(good)
        holds = self._bonds_hold() if self._bonded else True
        last = [int(s) == w.n_steps for s, w in zip(self._steps, walkers)]
        sampled = [
            end or int(s) % w.settings.sample_every == 0
            for end, s, w in zip(last, self._steps, walkers)
        ]
        kept = [int(s) % w.settings.checkpoint_every == 0 for s, w in zip(self._steps, walkers)]
        if not holds or not good.all() or any(sampled) or any(kept):
            temperatures = self._host(temperature)
            for k, walker in enumerate(walkers):
                if walker.ended:
                    continue
                problem = "" if good[k] else self._motion(k, temperatures)
                broken = "" if problem or holds else self._bonds(k)
                if not problem and not broken and (sampled[k] or kept[k]):
                    problem = self._distances(k)
                if problem or broken:
                    walker.end("exploded" if problem else "bond_broken", problem or broken)
            going = [k for k, w in enumerate(walkers) if sampled[k] and not w.ended]
            if going:
                self._sample(going)
                for k in going:
                    if walkers[k].bonds is not None:
                        self._save(k)
        for k, walker in enumerate(walkers):
            if walker.ended:
                continue
            if walker.watch is not None:
                self._watch(k, walker)
                if walker.ended:
                    continue
            if last[k]:
                self._save(k)
                walker.end("finished", "")
            elif kept[k]:
                self._save(k)
                walker.write()
                fs = walker.settings.timestep_fs
                walker.say(
                    f"walk at {walker.step * fs:g} of {walker.n_steps * fs:g} fs, "
                    f"{float(self._host(temperature)[k]):.0f} K"
                )

    def _save(self, k: int) -> None:
        if k in self._bond_rows:
            self.walkers[k].bond_mean = np.array(self._host(self._mean[self._bond_rows[k]]))
        self.walkers[k].save(self.integrator.state(k))

    # ------------------------------------------------------------------ checks by the letter
    def _host(self, values: Any) -> NDArray:
        return self.integrator.xp.host(values)

    def _motion(self, k: int, temperatures: NDArray) -> str:
        integrator, settings = self.integrator, self.walkers[k].settings
        rows, problem = integrator._rows[k], ""
        if integrator.flexible:
            cell = self._host(integrator.cells[k])
            problem = check_cell(self.walkers[k].start_cell, cell, max_stretch=settings.max_stretch)
        return problem or check_motion(
            self._host(integrator.positions[rows]),
            self._host(integrator.momenta[rows]),
            self._host(integrator.forces[rows]),
            float(temperatures[k]),
            highest_temperature=settings.max_temperature * settings.temperature_K,
            max_force=settings.max_force,
        )

    def _strains(self) -> Any:
        """Relative change of the length of every bond."""
        integrator = self.integrator
        x, cells, shift = integrator.positions, integrator.cells, self._bond_shifts
        vectors = x[self._bond_second] - x[self._bond_first]
        for a in range(3):
            vectors = vectors + shift[:, a : a + 1] * cells[:, a][self._bond_system]
        square = vectors * vectors
        lengths = integrator.xp.sqrt(square[:, 0] + square[:, 1] + square[:, 2])
        return lengths / self._expected - 1.0

    def _bonds_hold(self) -> bool:
        """Follow all bonds by one step; whether every one is within its limits."""
        self._strain = self._strains()
        self._mean = self._mean + self._share * (self._strain - self._mean)
        within = (abs(self._strain) <= self._most) & (abs(self._mean) <= self._most_mean)
        return bool(within.all())

    def _bonds(self, k: int) -> str:
        """Which bond of a walker is beyond its limits, in words."""
        walker = self.walkers[k]
        if k not in self._bond_rows or walker.bonds is None:
            return ""
        settings, rows = walker.settings, self._bond_rows[k]
        strain = self._host(self._strain[rows])
        pairs, _, expected = walker.bonds[:3]
        if settings.max_bond_strain is not None:
            lengths = (strain + 1.0) * expected
            found = check_bond_strain(lengths, expected, pairs, max_strain=settings.max_bond_strain)
            if found:
                return found
        if walker.limits is None:
            return ""
        return check_limits(
            strain,
            self._host(self._mean[rows]),
            walker.limits,
            most=np.inf if settings.bond_z is None else settings.bond_z,
            most_mean=np.inf if settings.bond_mean_z is None else settings.bond_mean_z,
        )

    def _distances(self, k: int) -> str:
        integrator, walker = self.integrator, self.walkers[k]
        shortest = integrator.outcome.shortest
        if shortest is not None and shortest[k] > walker.settings.min_distance:
            return ""
        return check_distances(
            walker.atoms.numbers,
            self._host(integrator.positions[integrator._rows[k]]),
            self._host(integrator.cells[k]),
            walker.atoms.pbc,
            shortest=walker.settings.min_distance,
        )

    # ------------------------------------------------------------------ what is not known
    def _quantile(self, k: int) -> NDArray:
        return self._host(self.integrator.outcome.quantile[self.integrator._rows[k]])

    def _watch(self, k: int, walker: Walker) -> None:
        watch = walker.watch
        assert watch is not None
        atoms = watch.step(self._quantile(k))
        if len(atoms) == 0:
            return
        if walker.settings.when_unfamiliar == "stop":
            walker.lose(atoms)
        else:
            walker.mark(atoms)

    # ------------------------------------------------------------------ samples
    def _sample(self, which: Sequence[int]) -> None:
        """A row of the trace for each of these walkers."""
        integrator, host = self.integrator, self._host
        temperature = host(integrator.temperatures())
        kinetic = host(integrator.kinetic_energies())
        volume = host(abs(determinant(integrator.cells)))
        force = np.sqrt(host(integrator.largest_forces()))
        energy = host(integrator.outcome.energy)
        stress = integrator.outcome.stress
        virial = np.full(len(energy), np.nan) if stress is None else host(trace(stress))
        conserved = host(integrator.conserved_energies()) if integrator.flexible else None
        positions, cells = host(integrator.positions), host(integrator.cells)
        for k in which:
            walker, pressure, strain = self.walkers[k], np.nan, np.nan
            if walker.atoms.pbc.all() and volume[k] > 0.0:
                # Ideal gas: tr(Σ p pᵀ/m) is twice the kinetic energy.
                pressure = (2.0 * kinetic[k] / volume[k] - virial[k]) / 3.0 / units.GPa
            if k in self._bond_rows:
                strain = float(np.abs(host(self._strain[self._bond_rows[k]])).max())
            row = [walker.step * walker.settings.timestep_fs, temperature[k], volume[k]]
            row += [energy[k], pressure, force[k], strain]
            if walker.settings.ensemble == "nvst" and conserved is not None:
                row.append(conserved[k])
            if walker.watch is not None:
                quantile = self._quantile(k)[~walker.watch.from_start]
                below = walker.watch.below(quantile)
                row += [quantile.min(initial=1.0), float(below.sum())]
                rows = integrator._rows[k]
                walker.watch.sample(Place(walker.step, positions[rows].copy(), cells[k].copy()))
            walker.trace.append([float(x) for x in row])
