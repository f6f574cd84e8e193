"""A Slurm of one controller and two nodes on this machine, for as long as a test needs it.

    with running(folder) as slurm:
        slurm.call("sinfo")
        slurm.kill_node("n2")

Its programs are those of PATH, or of Debian packages that were unpacked, not installed, into the folder that
PERSONA_LAB_SLURM names:

    apt-get download slurm-wlm-basic-plugins slurm-client slurmctld slurmd libmunge2 libhwloc15
    for package in *.deb; do dpkg -x $package $PERSONA_LAB_SLURM; done

No munge, no cgroups, no accounting; it needs root, because slurmd starts jobs as their users.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

NODES = ("n1", "n2")
MARK = "SLURM_ON_ONE_MACHINE"
"""A variable by which the processes of a daemon are known."""
CONF = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
PluginDir={plugins}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SchedulerParameters=sched_min_interval=100000,sched_interval=1,batch_sched_delay=0,default_queue_depth=100
SlurmdTimeout=20
KillWait=20
MinJobAge=600
NodeName=n1 NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[1]} CPUs=2 RealMemory=1000 State=UNKNOWN
NodeName=n2 NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[2]} CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


@dataclass
class Slurm:
    """Its programs and the processes that were started."""

    folder: Path
    programs: dict[str, str]
    environment: dict[str, str]
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def call(self, *command: str) -> str:
        """What one of Slurm's programs prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def start(self, name: str, command: list[str]) -> None:
        environment = self.environment | {MARK: f"{self.folder} {name}"}
        with (self.folder / f"{name}.out").open("ab") as log:
            self.daemons[name] = subprocess.Popen(command, env=environment, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def start_node(self, name: str) -> None:
        step = self.programs["slurmstepd"]
        self.start(name, [self.programs["slurmd"], "-D", "-N", name, "-d", step, "-f", str(self.folder / "slurm.conf")])

    def kill_node(self, name: str) -> None:
        """As if its power went: slurmd, the shepherds of its steps and what they started are killed at once, and its own disk is empty when it comes back."""
        daemon = self.daemons.pop(name)
        kill_all(marked(self.folder, name))
        daemon.wait(10)
        shutil.rmtree(self.folder / f"spool-{name}")

    def idle(self) -> int:
        """How many nodes wait for work."""
        done = subprocess.run(["sinfo", "-h", "-t", "idle", "-N", "-o", "%N"], env=self.environment, capture_output=True, text=True, timeout=30)
        return len(set(done.stdout.split()))


def why_not() -> str | None:
    """Why no Slurm can be started here; None: it can."""
    if os.geteuid() != 0:
        return "slurmd needs root to start jobs"
    found = programs()
    missing = [name for name, path in found.items() if path is None]
    return f"there is no {', '.join(missing)}: set PERSONA_LAB_SLURM to a folder of unpacked Debian packages" if missing else None


def programs() -> dict[str, str | None]:
    """Path of every program that is needed; None where there is none."""
    search = os.pathsep.join([*(f"{root()}/usr/{part}" for part in ("bin", "sbin") if root()), os.environ.get("PATH", ""), "/usr/sbin"])
    daemons = {name: shutil.which(f"{name}-wlm", path=search) or shutil.which(name, path=search) for name in ("slurmctld", "slurmd", "slurmstepd")}
    return daemons | {name: shutil.which(name, path=search) for name in ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")}


def root() -> str | None:
    """The folder of unpacked packages."""
    return os.environ.get("PERSONA_LAB_SLURM")


@contextmanager
def running(folder: Path) -> Iterator[Slurm]:
    """Both nodes are idle when the block begins; everything that was started is gone when it has ended."""
    found = {name: path for name, path in programs().items() if path}
    library = next(Path(found["sbatch"]).parents[1].glob("lib/*/slurm-wlm"), Path("/usr/lib/slurm"))
    (folder / "state").mkdir(parents=True)
    conf = CONF.format(host=socket.gethostname(), ports=free_ports(3), folder=folder, plugins=library)
    (folder / "slurm.conf").write_text(conf)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))} | {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "LD_LIBRARY_PATH": os.pathsep.join([str(library), str(library.parent), os.environ.get("LD_LIBRARY_PATH", "")]),
        "PATH": os.pathsep.join([str(Path(found["sbatch"]).parent), os.environ["PATH"]]),
    }
    slurm = Slurm(folder, found, environment)
    try:
        slurm.start("slurmctld", [found["slurmctld"], "-c", "-D", "-f", str(folder / "slurm.conf")])
        for name in NODES:
            slurm.start_node(name)
        until(lambda: slurm.idle() == len(NODES), 60, f"no idle nodes; see {folder}")
        yield slurm
    finally:
        kill_all([pid for name in ("slurmctld", *NODES) for pid in marked(folder, name)])
        for daemon in slurm.daemons.values():
            daemon.wait(10)


def until(true, seconds: float, otherwise: str, every: float = 0.2) -> None:
    """Wait until something is so, or fail."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, otherwise
        time.sleep(every)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def kill_all(pids: list[int]) -> None:
    """Kill these and everything that they have started."""
    for pid in dict.fromkeys(each for first in pids for each in (first, *children_of(first))):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def table() -> dict[int, tuple[int, str]]:
    """Every process: its parent, and its command line."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            found[int(entry.name)] = (parent, (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except (OSError, ValueError):
            continue  # it has ended
    return found


def children_of(pid: int) -> list[int]:
    """Everything that a process has started, and what these have."""
    processes = table()
    found = [pid]
    for one in found:
        found += [child for child, (parent, _) in processes.items() if parent == one]
    return found[1:]


def marked(folder: Path, name: str) -> list[int]:
    """A daemon of this Slurm and the shepherds of its steps, which outlive it; not what these started."""
    found = []
    for pid in table():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended
        if f"{MARK}={folder} {name}".encode() in environment:
            found.append(pid)
    return found
