"""A real SLURM on this machine: controller, four pretend nodes, pretend GPUs, all on the loopback.

Everything lives in one directory (configuration, keys, sockets, state, logs) and nothing in /etc is
touched. Works as root and as an ordinary user (the packages must be there then). By hand::

    python tests/slurm/lab.py up DIR        # then: . DIR/env.sh; sinfo
    python tests/slurm/lab.py kill DIR d1   # also: stop, start; munged slurmctld c1 c2 d1 g1
    python tests/slurm/lab.py down DIR

Needs Debian's slurmctld, slurmd, slurm-client and munge (`install` gets them, as root).
"""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "mungekey")
#: name, partition, cores, MB, GPUs. The cores are more than this machine may have.
NODES = (
    ("c1", "cpu", 4, 6000, 0),
    ("c2", "cpu", 4, 6000, 0),
    ("d1", "dft", 8, 8000, 0),
    ("g1", "gpu", 4, 4000, 2),
)
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def missing_programs() -> list[str]:
    """Programs that have to be installed first."""
    return [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]


def install() -> None:
    """Install the packages (Debian, Ubuntu; root), without letting them start any service."""
    if not missing_programs():
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise RuntimeError(
            f"found no {', '.join(missing_programs())}; expected them: as root, "
            f"apt-get install {' '.join(PACKAGES)}"
        )
    policy = Path("/usr/sbin/policy-rc.d")
    made = not policy.exists()
    if made:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    # Another process may hold the lock of apt for a while.
    apt = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300"]
    get = [*apt, "install", "-y", "--no-install-recommends", *PACKAGES]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        if subprocess.run(get, env=environment, capture_output=True).returncode:
            subprocess.run([*apt, "update"], env=environment, check=True, capture_output=True)
            subprocess.run(get, env=environment, check=True, capture_output=True)
    finally:
        if made:
            policy.unlink()


def _start_time(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class SlurmLab:
    """One SLURM in a directory; `start` and `stop`, and single daemons to be broken."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.root = Path(directory).resolve()
        self.conf = self.root / "etc" / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """Environment of commands that talk to this SLURM."""
        return {**os.environ, "SLURM_CONF": str(self.conf), "PATH": _PATH}

    def run(self, *command: str, timeout: float = 60.0, check: bool = True) -> str:
        """Standard output of a command of this SLURM."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=timeout
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def jobs(self, fields: str = "%i|%j|%T") -> list[list[str]]:
        """Jobs that are not over, each as its fields."""
        out = self.run("squeue", "--noheader", f"--format={fields}", check=False)
        return [line.strip().split("|") for line in out.splitlines() if line.strip()]

    # -- daemons
    def _command(self, name: str) -> list[str]:
        if name == "munged":
            run, etc = self.root / "run", self.root / "etc"
            return [
                "munged",
                "-F",
                f"--key-file={etc}/munge.key",
                f"--socket={run}/munge.socket",
                f"--pid-file={run}/munged.self.pid",
                f"--log-file={self.root}/log/munged.log",
                f"--seed-file={self.root}/state/munged.seed",
            ]
        if name == "slurmctld":
            return ["slurmctld", "-D", "-f", str(self.conf)]
        return ["slurmd", "-D", "-f", str(self.conf), "-N", name]

    def pid(self, name: str) -> int | None:
        """Process of a daemon, None if it does not run."""
        try:
            pid, started = json.loads((self.root / "run" / f"{name}.json").read_text())
        except (OSError, ValueError):
            return None
        # A pid alone may be somebody else's by now.
        return pid if _start_time(pid) == started != "" else None

    def start_daemon(self, name: str) -> None:
        """Start one daemon, unless it runs."""
        if self.pid(name) is not None:
            return
        if name not in ("munged", "slurmctld"):
            (self.root / "spool" / name).mkdir(parents=True, exist_ok=True)
        with (self.root / "log" / f"{name}.out").open("ab") as log:
            process = subprocess.Popen(
                self._command(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )
        time.sleep(0.1)
        if process.poll() is not None:
            said = (self.root / "log" / f"{name}.out").read_text()[-500:]
            raise RuntimeError(f"{name} did not start: {said}")
        facts = [process.pid, _start_time(process.pid)]
        (self.root / "run" / f"{name}.json").write_text(json.dumps(facts))

    def signal_daemon(self, name: str, number: int = signal.SIGKILL) -> None:
        """End one daemon (SIGKILL: it has no time to save or to say goodbye)."""
        pid = self.pid(name)
        if pid is None:
            return
        os.kill(pid, number)
        deadline = time.monotonic() + 15
        while self.pid(name) is not None and time.monotonic() < deadline:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            time.sleep(0.05)

    # -- all of it
    def start(self, *, timeout: float = 120.0) -> None:
        """Write the configuration, start everything, wait until the nodes are idle."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o755)
        for folder in ("etc", "run", "log", "state", "spool", "dev"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
            (self.root / folder).chmod(0o755)
        self._configure()
        key = self.root / "etc" / "munge.key"
        if not key.exists():
            self.run("mungekey", "-c", "-k", str(key))
            key.chmod(0o400)
        self.start_daemon("munged")
        deadline = time.monotonic() + timeout
        while not (self.root / "run" / "munge.socket").exists():
            if time.monotonic() > deadline:
                raise RuntimeError("munged made no socket")
            time.sleep(0.05)
        self.start_daemon("slurmctld")
        for name, *_ in NODES:
            self.start_daemon(name)
        self.wait_for_nodes(timeout=timeout)

    def wait_for_nodes(self, *, timeout: float = 120.0) -> None:
        """Until every node takes jobs."""
        deadline = time.monotonic() + timeout
        while True:
            states = self.run("sinfo", "-h", "-N", "-o", "%N %t", check=False).splitlines()
            if sum(re.search(r" (idle|mix|alloc)$", line) is not None for line in states) == 4:
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"nodes are not idle: {states}")
            time.sleep(0.2)

    def _configure(self) -> None:
        host = socket.gethostname().split(".")[0]
        user = getpass.getuser()
        ports = _free_ports(len(NODES) + 1)
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cores} "
            f"RealMemory={memory} {f'Gres=gpu:{gpus} ' if gpus else ''}State=UNKNOWN"
            for (name, _, cores, memory, gpus), port in zip(NODES, ports[1:], strict=True)
        )
        # Without NoInAddrAny each daemon listens to the world. slurmctld insists on this machine's
        # name, hence NAME(ADDRESS). config_overrides: a node may claim more cores than there are.
        self.conf.write_text(f"""\
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={self.root}/run/munge.socket
StateSaveLocation={self.root}/state
SlurmctldPidFile={self.root}/run/slurmctld.self.pid
SlurmctldLogFile={self.root}/log/slurmctld.log
SlurmdSpoolDir={self.root}/spool/%n
SlurmdPidFile={self.root}/run/%n.self.pid
SlurmdLogFile={self.root}/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=100000
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=15
MessageTimeout=5
InactiveLimit=0
KillWait=3
MinJobAge=300
Waittime=0
JobRequeue=1
GresTypes=gpu
DefMemPerCPU=500
{nodes}
PartitionName=cpu Nodes=c[1-2] Default=YES MaxTime=01:00:00 DefaultTime=00:10:00 State=UP
PartitionName=dft Nodes=d1 MaxTime=02:00:00 DefaultTime=00:10:00 State=UP
PartitionName=gpu Nodes=g1 MaxTime=01:00:00 DefaultTime=00:10:00 State=UP
""")
        (self.root / "etc" / "gres.conf").write_text(self._pretend_gpus())
        (self.root / "env.sh").write_text(
            f"export SLURM_CONF={self.conf}\nexport PATH=$PATH:/usr/sbin:/sbin\n"
        )

    def _pretend_gpus(self) -> str:
        """A GPU has to be a character device; copies of /dev/null will do, or two consoles."""
        if os.geteuid() == 0:
            for index in range(2):
                path = self.root / "dev" / f"gpu{index}"
                path.unlink(missing_ok=True)
                os.mknod(path, 0o20666, os.makedev(1, 3))
            return f"NodeName=g1 Name=gpu File={self.root}/dev/gpu[0-1]\n"
        if Path("/dev/tty0").exists() and Path("/dev/tty1").exists():
            return "NodeName=g1 Name=gpu File=/dev/tty[0-1]\n"
        return "NodeName=g1 Name=gpu Count=2\n"

    def cancel_all(self, *, timeout: float = 60.0) -> None:
        """Cancel every job and wait until none is left."""
        with suppress(RuntimeError, subprocess.TimeoutExpired):
            identities = [job[0] for job in self.jobs()]
            if identities:
                self.run("scancel", *identities, check=False)
            deadline = time.monotonic() + timeout
            while self.jobs() and time.monotonic() < deadline:
                time.sleep(0.1)

    def restore(self) -> None:
        """All daemons up, all nodes and partitions in service, no jobs."""
        self.start_daemon("munged")
        self.start_daemon("slurmctld")
        for name, partition, *_ in NODES:
            self.start_daemon(name)
            self.run("scontrol", "update", f"PartitionName={partition}", "State=UP", check=False)
        self.cancel_all()
        with suppress(RuntimeError):
            self.wait_for_nodes(timeout=3)
            return
        for name, *_ in NODES:
            self.run("scontrol", "update", f"NodeName={name}", "State=RESUME", check=False)
        self.wait_for_nodes()

    def kill_node(self, name: str) -> None:
        """Have a node vanish: its daemon and all processes of its jobs at once."""
        victims = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                environment = (entry / "environ").read_bytes().split(b"\0")
                mine = f"SLURM_CONF={self.conf}".encode() in environment
                if mine and f"SLURMD_NODENAME={name}".encode() in environment:
                    victims.append(int(entry.name))
        self.signal_daemon(name)
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """Cancel all jobs and end exactly what was started here."""
        self.cancel_all()
        # The state is of no use to anybody: no need to let the controller save it for 5 s.
        for name in [*(node[0] for node in NODES), "slurmctld", "munged"]:
            self.signal_daemon(name)
        # Step daemons outlive a slurmd that was killed; theirs is the conf of this lab.
        mark = f"SLURM_CONF={self.conf}".encode()
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if (entry / "comm").read_text().strip() == "slurmstepd" and mark in (
                    entry / "environ"
                ).read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)


def main(argv: list[str]) -> int:
    """Command line of the module's docstring."""
    if argv[:1] == ["install"]:
        install()
        return 0
    if len(argv) < 2 or argv[0] not in ("up", "down", "start", "stop", "kill"):
        print(__doc__, file=sys.stderr)
        return 2
    lab = SlurmLab(argv[1])
    match argv[0]:
        case "up":
            install()
            lab.start()
            print(lab.run("sinfo"))
        case "down":
            lab.stop()
        case "start":
            lab.start_daemon(argv[2])
        case "stop":
            lab.signal_daemon(argv[2], signal.SIGTERM)
        case "kill":
            lab.signal_daemon(argv[2])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
