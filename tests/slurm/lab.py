"""A real but temporary Slurm of two nodes on one machine.

Every node is a network and UTS namespace with its own address. All nodes are in one PID and mount namespace, so that
nothing outside is affected and everything ends with the first process.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "ip", "tc", "nsenter", "unshare", "pgrep")
CPUS, GPUS = 8, 2
"""CPUs and GPUs that every node claims to have."""

FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")

CONFIGURATION = """
ClusterName=lab
SlurmctldHost=ctl(10.77.0.253)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
# No cgroups are used, and nodes may claim more than the machine has.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
MailProg=/bin/true
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
KillWait=30
MinJobAge=3600
SlurmctldTimeout=10
SlurmdTimeout=10
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
AccountingStorageType=accounting_storage/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES State=UP MaxTime=INFINITE PriorityTier=1 GraceTime=90
PartitionName=high Nodes=ALL State=UP MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""

# The first process of the lab. Nodes get /etc/hosts by a mount, and their slurmd from start_node.
START = """
set -eu
cd {folder}
mount -t tmpfs tmpfs /run
mkdir /run/netns
ip link add bridge0 type bridge; ip link set bridge0 up; ip link set lo up
ip addr add 10.77.0.253/24 dev bridge0; hostname ctl; mount --bind hosts /etc/hosts
for i in $(seq {nodes}); do
  ip netns add n$i
  ip link add node$i type veth peer name eth0 netns n$i
  ip link set node$i master bridge0 up
  ip -n n$i addr add 10.77.0.$i/24 dev eth0; ip -n n$i link set eth0 up; ip -n n$i link set lo up
done
for g in $(seq 0 $(({gpus} - 1))); do mknod gpu$g c 1 3; done
munged --key-file=munge.key --socket={folder}/munge.sock --pid-file={folder}/munged.pid \
  --log-file={folder}/munged.log --seed-file={folder}/munged.seed
slurmctld
touch up
exec sleep infinity
"""


class Lab:
    """A Slurm of two nodes, n1 and n2. ``up`` starts it, ``down`` ends all its processes.

    Args:
        folder: for configuration, state and logs; absolute and short, because it holds a socket.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.nodes = folder, ["n1", "n2"]
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))},
            "SLURM_CONF": str(folder / "slurm.conf"),
            "UNIBERT_VENV": str(Path(sys.executable).parents[1]),
            "UNIBERT_CACHE": str(folder),
        }
        self._first: subprocess.Popen[bytes] | None = None

    def up(self) -> None:
        """Start controller and nodes; raise RuntimeError with the last line of what failed."""
        folder, count = self.folder, len(self.nodes)
        folder.chmod(0o755)  # munge requires that every user can reach its socket
        for name in ("state", *(f"spool/{node}" for node in self.nodes)):
            (folder / name).mkdir(parents=True)
        key = folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        addresses = {f"n{i + 1}": f"10.77.0.{i + 1}" for i in range(count)}
        hosts = {"localhost": "127.0.0.1", "ctl": "10.77.0.253", **addresses}
        (folder / "hosts").write_text("".join(f"{address} {name}\n" for name, address in hosts.items()))
        lines = [
            f"NodeName={name} NodeAddr={address} CPUs={CPUS} RealMemory=8192 Gres=gpu:{GPUS} State=UNKNOWN"
            for name, address in addresses.items()
        ]
        (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, nodes="\n".join(lines)))
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n")
        script = START.format(folder=folder, nodes=count, gpus=GPUS)
        unshare = ("unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")
        with (folder / "start.log").open("wb") as log:
            self._first = subprocess.Popen(
                [*unshare, "bash", "-c", script],
                env=self._environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        wait_until(lambda: (folder / "up").exists() or self._first.poll() is not None, 60)
        if not (folder / "up").exists():
            raise RuntimeError(["no output", *(folder / "start.log").read_text().strip().splitlines()][-1])
        for node in self.nodes:
            self.start_node(node)
        wait_until(lambda: self.idle_nodes() == count, 60)

    def down(self) -> None:
        if self._first is not None:
            self._first.kill()
            self._first.wait()

    def _namespace_pid(self) -> int:
        """Return the process in the lab's namespaces: the child of unshare."""
        first = self._first.pid
        return int(Path(f"/proc/{first}/task/{first}/children").read_text().split()[0])

    def run(self, *words: str, check: bool = True) -> str:
        """Run a command on the controller's machine and return its output."""
        command = ["nsenter", "-t", str(self._namespace_pid()), "--net", "--uts", "--mount", "--pid", *words]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True)
        if check and done.returncode:
            raise RuntimeError(f"{shlex.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout.strip()

    def on_node(self, node: str, script: str) -> str:
        """Run a line of shell on a node and return its output."""
        slurmd = (self.folder / f"slurmd-{node}.pid").read_text().strip()
        return self.run("nsenter", "-t", slurmd, "--net", "--uts", "--mount", "sh", "-c", script)

    def start_node(self, node: str) -> None:
        # nsenter, because `ip netns exec` remounts /sys, and slurmd then misses its cgroups.
        namespaces = ("nsenter", f"--net=/run/netns/{node}", "unshare", "--uts", "--mount")
        self.run(*namespaces, "sh", "-c", f"hostname {node} && slurmd -N {node}")

    def kill_node(self, node: str) -> None:
        """Kill a node's slurmd. Its jobs' processes go on, as on a machine that has lost its network."""
        self.run("kill", "-9", (self.folder / f"slurmd-{node}.pid").read_text().strip())

    def idle_nodes(self) -> int:
        return len(self.run("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N", check=False).split())

    def submit(self, *words: str, folder: Path = REPOSITORY) -> str:
        """Submit a batch job from ``folder`` and return its id; its log is in the lab's folder."""
        line = shlex.join(["sbatch", "--parsable", f"--output={self.folder}/%j.log", *words])
        return self.run("sh", "-c", f"cd {shlex.quote(str(folder))} && {line}")

    def log(self, job: str) -> str:
        path = self.folder / f"{job}.log"
        return path.read_text() if path.exists() else ""

    def job(self, job: str) -> dict[str, str]:
        fields = self.run("scontrol", "show", "job", "-o", job)
        return dict(re.findall(r"(\w+)=(\S*)", fields))

    def state(self, job: str) -> str:
        return self.job(job)["JobState"]

    def wait(self, job: str, timeout: float = 300) -> str:
        """Wait for a job to end and return its final state."""
        wait_until(lambda: self.state(job) in FINAL, timeout, lambda: f"job {job} is {self.state(job)}")
        return self.state(job)

    def restarts(self, job: str) -> int:
        return int(self.job(job)["Restarts"])

    def start_at_once(self, job: str) -> None:
        """Let a requeued job start once its old credential has expired, without waiting for the scheduler."""
        wait_until(lambda: self.state(job) == "PENDING", 120, lambda: f"job {job} is {self.state(job)}")
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now+6")

    def pids(self, pattern: str) -> list[int]:
        """Return the lab's processes whose command line matches, by their ids in its namespace."""
        return [int(pid) for pid in self.run("pgrep", "-f", "--", pattern, check=False).split()]

    def kill(self, pid: int, number: signal.Signals) -> None:
        self.run("kill", f"-{int(number)}", str(pid))


def missing_commands() -> list[str]:
    return [name for name in COMMANDS if shutil.which(name) is None]


def wait_until(condition, timeout: float, describe=lambda: "") -> None:
    """Raise RuntimeError if ``condition()`` does not become true within ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"still false after {timeout:g} s: {describe()}")
        time.sleep(0.3)
