"""A processor at work that dirties memory at a set rate: how much of its work protection leaves it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic

import trio

from remuslike.bench.errors import MeasurementError
from remuslike.bench.results import Load
from remuslike.bench.stage import Stage
from remuslike.image import Service

_PATIENCE_S = 60.0
_SETTLE_S = 1.0  # the working set has just been written for the first time: let that travel

# A unit of work is some arithmetic; after each, the page writes that are due by the guest's clock. It is told
# to begin and to end by a line each. What it can't keep up with beyond 50 ms it leaves out. The image has no
# modules of perl: 228 is clock_gettime(2) of x86-64, and 1 CLOCK_MONOTONIC.
_PROGRAM = """
sub now { syscall(228, 1, my $spec = "\\0" x 16); my ($s, $ns) = unpack("qq", $spec); $s + $ns / 1e9 }
my ($rate, $pages) = @ARGV;
my $memory = "\\1" x ($pages * 4096);
my ($units, $written, $page, $x) = (0, 0, 0, 1);
$| = 1;
print "ready\\n";
<STDIN>;
my $last = now;
my $due = 0;
my $most = $rate > 20 ? $rate / 20 : 1;
while (1) {
    for (1 .. 500) { $x = ($x * 1103515245 + 12345) & 0x7fffffff; }
    $units++;
    my $now = now;
    $due += ($now - $last) * $rate;
    $last = $now;
    $due = $most if $due > $most;
    while ($due >= 1) {
        vec($memory, $page * 4096, 8) = $units & 255;
        $page = 0 if ++$page == $pages;
        $written++;
        $due--;
    }
    my $readable = "\\1";
    last if select($readable, undef, undef, 0);
}
<STDIN>;
print "$units $written\\n";
"""


@dataclass(frozen=True, slots=True)
class Cpu:
    """Writes `pages_s` pages a second, one after the other through `working_set_mib`, beside arithmetic whose
    units count."""

    name: str = "cpu"
    variants: tuple[Mapping[str, int], ...] = (
        {"pages_s": 0, "working_set_mib": 1},
        {"pages_s": 500, "working_set_mib": 16},
        {"pages_s": 2000, "working_set_mib": 16},
        {"pages_s": 20_000, "working_set_mib": 16},
        {"pages_s": 2000, "working_set_mib": 256},
    )
    service: Service = "none"

    @property
    def limits(self) -> Mapping[str, tuple[int, int]]:
        return {"pages_s": (0, 20_000), "working_set_mib": (1, 256)}

    async def measure(self, stage: Stage, parameters: Mapping[str, int], seconds: int) -> Load:
        pages = parameters["working_set_mib"] << 8
        # In the shell's place, for which nothing is left to read: what is unread would reset the connection.
        command = "exec " + shlex.join(["perl", "-e", _PROGRAM, str(parameters["pages_s"]), str(pages)])
        async with stage.shell_session(command, limit_s=seconds + _PATIENCE_S) as program:
            await program.expect("ready")
            await trio.sleep(_SETTLE_S)
            with stage.measured():
                began = monotonic()
                await program.send(b"go\n")
                await trio.sleep(seconds)
                await program.send(b"stop\n")
                lasted_s = monotonic() - began
            answer = await program.rest()
        try:
            units, written = (int(word) for word in answer.split())
        except ValueError as error:
            raise MeasurementError(f"the program in the guest says {answer[-300:]!r}") from error
        return Load(unit="units/s", rate=units / lasted_s, details={"pages_s": written / lasted_s})


CPU = Cpu()
