"""A driver that runs in a batch job itself, and hands over to a successor before its walltime.

The driver submits its successor a while before its own end and goes on working. The successor,
once SLURM has started it, asks for the campaign and waits; the driver sees that and leaves, its
workers stay, finish what they have in hand and find the new driver. If the successor does not
start in time, the driver's walltime ends it, and the workers wait for as long as `linger` says.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from mofal.errors import ConfigError, ScheduleError
from mofal.schedule.events import schedule_directory
from mofal.schedule.files import PRIVATE, TAKEOVER, Layout, takeover_file, write_text
from mofal.schedule.sections import DriverSettings
from mofal.schedule.settings import ScheduleSettings
from mofal.schedule.slurm import Commands, SlurmCommands, SlurmError, directives, mebibytes

#: Environment of a driver in a job: its own command, as JSON.
COMMAND = "MOFAL_DRIVER_COMMAND"
#: Seconds between two attempts at submitting the successor.
RETRY = 60.0


class HandedOver(ScheduleError):
    """Not a mistake: this driver is done, and its successor goes on."""


def driver_script(
    settings: DriverSettings, *, directory: Path, command: Sequence[str], name: str
) -> str:
    """Job script in which the driver runs."""
    log = schedule_directory(directory) / "logs" / "driver-job.log"
    lines = directives(settings, name=name, log=log, cores=0, walltime=settings.walltime)
    lines += ["--ntasks=1", "--cpus-per-task=1"]
    if settings.memory is not None:
        lines.append(f"--mem={mebibytes(settings.memory)}M")
    lines += settings.job_extra
    head = "".join(f"#SBATCH {line}\n" for line in lines)
    body = "".join(f"{line}\n" for line in settings.prologue)
    body += f"export {COMMAND}={shlex.quote(json.dumps(list(command)))}\n"
    body += f"export {TAKEOVER}={settings.walltime}\n"
    return f"#!/bin/bash\n{head}\n{body}cd {shlex.quote(os.getcwd())}\nexec {shlex.join(command)}\n"


def submit_driver(
    settings: ScheduleSettings,
    *,
    directory: str | os.PathLike[str],
    command: Sequence[str],
    commands: Commands | None = None,
) -> str:
    """Submit a driver as a batch job; `mofal run --submit` and each handover end here.

    Parameters
    ----------
    settings
        The `schedule` section; its `driver` says in what kind of job.
    directory
        Of the campaign.
    command
        What runs the campaign, e.g. ``["mofal", "run", "campaign.yaml"]``; it must work from the
        present directory.

    Returns
    -------
    str
        Number of the job.

    Raises
    ------
    ConfigError
        The section has no `driver`.
    ScheduleError
        sbatch refused.
    """
    driver = settings.effective_driver()
    if driver is None:
        raise ConfigError(
            "found no `driver` in the schedule section; expected the job in which the driver "
            "runs, e.g. driver: {partition: long, walltime: 2-00:00:00}"
        )
    place = Path(directory).absolute()
    folder = schedule_directory(place)
    Layout(folder).make()
    script = folder / "driver.sh"
    name = f"mofal-driver-{place.name}"
    text = driver_script(driver, directory=place, command=command, name=name)
    write_text(script, text, mode=PRIVATE)  # a prologue may hold a token
    try:
        return (commands or SlurmCommands()).submit(script)
    except SlurmError as error:
        raise ScheduleError(
            f"sbatch refused the driver's job: {error}; expected a job that this cluster takes: "
            "see schedule: driver: in the campaign file"
        ) from error


class Handover:
    """Watches the clock of a driver that runs in a job; made by the dispatcher.

    Parameters
    ----------
    settings
        The `schedule` section.
    directory
        Of the campaign.
    say
        Called with a line for a person.
    environment
        Of the process; a driver in a job finds its command there.
    submit
        What submits the successor.
    """

    def __init__(
        self,
        settings: ScheduleSettings,
        *,
        directory: Path,
        say: Callable[[str], None],
        environment: Mapping[str, str] | None = None,
        submit: Callable[..., str] = submit_driver,
    ) -> None:
        facts = os.environ if environment is None else environment
        self._settings = settings
        self._directory = directory
        self._say = say
        self._submit = submit
        self._request = takeover_file(directory)
        self.successor = ""
        self._command: list[str] = []
        self._deadline = float("inf")
        if settings.driver is not None and facts.get(COMMAND):
            self._command = json.loads(facts[COMMAND])
            end = time.time() + settings.driver.walltime
            if facts.get("SLURM_JOB_END_TIME", "").isdigit():
                end = min(end, float(facts["SLURM_JOB_END_TIME"]))
            self._deadline = end - settings.driver.margin

    def withdraw(self, commands: Commands | None = None) -> None:
        """Cancel a successor that is not needed any more: the work is done, or was stopped."""
        if self.successor:
            with suppress(SlurmError):  # then it starts, finds nothing to do, and ends
                (commands or SlurmCommands()).cancel([self.successor])
            self.successor = ""

    def check(self, now: float | None = None) -> None:
        """Submit the successor when it is time; raise `HandedOver` when it asks for the campaign.

        Raises
        ------
        HandedOver
            This driver has to leave.
        """
        now = time.time() if now is None else now
        if now >= self._deadline and not self.successor:
            try:
                self.successor = self._submit(
                    self._settings, directory=self._directory, command=self._command
                )
                self._say(f"submitted job {self.successor}, which takes over when it starts")
            except ScheduleError as error:
                self._deadline = now + RETRY
                self._say(f"{error}; once more in {RETRY:.0f} s")
        if self._request.exists():
            self._request.unlink(missing_ok=True)
            self.successor = ""  # it is at work now, and not to be withdrawn
            raise HandedOver(
                "handed over to another driver, which goes on with this campaign "
                f"(`mofal status {self._directory}`)"
            )
