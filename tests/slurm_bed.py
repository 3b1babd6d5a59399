"""A Slurm of two nodes on this host, for the opt-in tests: munged, slurmctld and two slurmd on ports of 127.0.0.1.
Needs root and Debian's packages slurm-wlm and munge."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests import processes

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "sinfo", "squeue")
PORT = 26817
CONF = """
ClusterName=tiny
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket
CredType=cred/munge
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool.%n
SlurmctldPidFile={home}/ctld.pid
SlurmdPidFile={home}/%n.pid
SlurmctldLogFile={home}/ctld.log
SlurmdLogFile={home}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
ReturnToService=2
MpiDefault=none
KillWait=30
SlurmdTimeout=20
SchedulerParameters=batch_sched_delay=1,sched_interval=5
NodeName=n[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[26901-26902] CPUs=1 RealMemory=2000 State=UNKNOWN
PartitionName=low Nodes=n[1-2] Default=YES MaxTime=1:00:00 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=n[1-2] MaxTime=1:00:00 State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str:
    """Why it cannot be started here; empty if it can."""
    lacking = [name for name in NEEDED if shutil.which(name) is None]
    if lacking:
        return f"{', '.join(lacking)} missing: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "it needs root"


def told(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout


@contextlib.contextmanager
def bed(home: Path) -> Iterator[dict[str, subprocess.Popen]]:
    """The daemons by name; SLURM_CONF points to them."""
    home.mkdir(parents=True)
    home.chmod(0o755)
    (home / "state").mkdir()
    (home / "slurm.conf").write_text(CONF.format(home=home, port=PORT))
    munge = home / "munge"
    munge.mkdir()
    (munge / "key").write_bytes(os.urandom(128))
    (munge / "key").chmod(0o600)
    os.environ["SLURM_CONF"] = str(home / "slurm.conf")
    commands = {
        "munged": [
            *("munged", "--foreground", "--force", f"--socket={home}/munge.socket", f"--key-file={munge}/key"),
            *(f"--log-file={munge}/log", f"--pid-file={munge}/pid", f"--seed-file={munge}/seed"),
        ],
        "slurmctld": ["slurmctld", "-D", "-c", "-f", f"{home}/slurm.conf"],
        "n1": ["slurmd", "-D", "-f", f"{home}/slurm.conf", "-N", "n1"],
        "n2": ["slurmd", "-D", "-f", f"{home}/slurm.conf", "-N", "n2"],
    }
    running: dict[str, subprocess.Popen] = {}
    try:
        for name, command in commands.items():
            log = open(home / f"{name}.out", "w")
            running[name] = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            time.sleep(1)
        end = time.monotonic() + 60
        while told("sinfo", "-h", "-N", "-p", "low", "-o", "%T").split() != ["idle", "idle"]:
            if time.monotonic() > end:
                logs = "\n".join((home / f"{name}.out").read_text()[-500:] for name in commands)
                raise RuntimeError(f"the nodes did not come up: {told('sinfo')}\n{logs}")
            time.sleep(0.5)
        yield running
    finally:
        told("scancel", "--user=root", "--state=RUNNING")
        told("scancel", "--user=root")
        for name in reversed(running):
            running[name].send_signal(signal.SIGTERM)
        for process in running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
        os.environ.pop("SLURM_CONF")


def kill_node(name: str, daemon: subprocess.Popen) -> list[int]:
    """A node is lost: its slurmd and everything below it, with SIGKILL; returns what was killed."""
    everything = [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    steps = [pid for pid, line in processes.commands(everything).items() if "slurmstepd" in line]
    own = [pid for pid in steps if f"SLURMD_NODENAME={name}".encode() in b"".join(environments_below(pid))]
    found = processes.family([daemon.pid, *own])
    processes.kill(found)
    return found


def environments_below(pid: int) -> Iterator[bytes]:
    for child in processes.family([pid])[1:]:
        with contextlib.suppress(OSError):
            yield Path(f"/proc/{child}/environ").read_bytes()
