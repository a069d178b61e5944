"""What the demo can be asked for. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from remuslike.config import DETECT_MS_MIN, MODES, Mode
from remuslike.demo.errors import DemoOptionError
from remuslike.demo.plan import DAEMON

MACHINES = ("q35", "microvm")

# The whole load stays in the guest's RAM three times: redis's values, the append-only file's pages
# in the page cache, and the copies that travel. A quarter of RAM for the first leaves room to run.
LOAD_SHARE = 4


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """One invocation of the demo; `check` refuses what can't be run.

    `seed` decides when the host is killed and what is written; run `n` of `runs` uses `seed + n`.
    Each of `connections` keeps `pipeline` writes of `payload_bytes` on their way; the defaults touch
    about 500 pages in 25 ms, and a connection's writes fit into one TCP segment. `daemon` is the
    command line in front of `primary --config FILE`.
    """

    seed: int
    mode: Mode = "epoch"
    epoch_ms: float = 25
    duration_s: float = 10
    detect_ms: float = 100
    machine: str = "q35"
    vcpus: int = 1
    memory_mib: int = 256
    connections: int = 64
    pipeline: int = 4
    payload_bytes: int = 256
    accelerator: str | None = None
    runs: int = 1
    json_path: Path | None = None
    keep: bool = False
    daemon: tuple[str, ...] = DAEMON

    @property
    def epoch(self) -> dict[str, object]:
        """The configuration's table of that name."""
        return {"mode": self.mode, "epoch_ms": self.epoch_ms}

    @property
    def load_limit_bytes(self) -> int:
        """How much the client may write before it stops; the guest holds all of it in RAM."""
        return (self.memory_mib << 20) // LOAD_SHARE

    @property
    def data_disk_mib(self) -> int:
        """Room for the append-only file, for its protocol overhead on short values, and for ext4."""
        return 64 + 4 * self.memory_mib // LOAD_SHARE

    def check(self) -> None:
        """Raises DemoOptionError for the first value out of range. Widths follow `remuslike.config`."""
        ranges: tuple[tuple[str, float, float, float, str], ...] = (
            ("--seed", self.seed, 0, (1 << 63) - 1 - self.runs, ""),
            ("--epoch-ms", self.epoch_ms, 1, 10_000, ""),
            ("--duration-s", self.duration_s, 2, 3_600, "; the host is killed in its second half"),
            ("--detect-ms", self.detect_ms, DETECT_MS_MIN, 60_000, ""),
            ("--vcpus", self.vcpus, 1, 255, ""),
            ("--memory-mib", self.memory_mib, 128, 65_536, "; the guest image needs 128"),
            ("--connections", self.connections, 1, 512, ""),
            ("--pipeline", self.pipeline, 1, 256, ""),
            ("--payload-bytes", self.payload_bytes, 16, 65_536, ""),
            ("--runs", self.runs, 1, 1_000, ""),
        )
        for name, value, low, high, reason in ranges:
            if not low <= value <= high:
                raise DemoOptionError(f"{name} {value:g} is out of range; give {low:g} to {high:g}{reason}")
        if self.mode not in MODES:
            raise DemoOptionError(f"--mode {self.mode} is unknown; give one of {', '.join(MODES)}")
        if self.machine not in MACHINES:
            raise DemoOptionError(f"--machine {self.machine} is unknown; give one of {', '.join(MACHINES)}")
        if self.accelerator not in (None, "kvm", "tcg"):
            raise DemoOptionError(f"--accelerator {self.accelerator} is unknown; give kvm or tcg")
        if self.json_path is not None and not self.json_path.absolute().parent.is_dir():
            raise DemoOptionError(f"--json {self.json_path}: its directory doesn't exist; create it first")


DEFAULTS = DemoOptions(seed=0)
