"""The configuration file of a daemon: TOML in, frozen models out, every complaint named.

The same file shape serves both roles; README has an annotated example.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from diskbuf import store_path
from diskbuf.errors import StoreUriError
from remuslike.errors import ConfigurationError
from remuslike.guest.refusals import refuse_arguments

NAME_PATTERN = re.compile(r"[a-z][a-z0-9-]{0,14}")
MAC_PATTERN = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")


def _checked_name(value: str) -> str:
    if not NAME_PATTERN.fullmatch(value):
        raise ValueError("must be 1 to 15 of a-z, 0-9 and '-', and begin with a letter")
    return value


def _checked_mac(value: str) -> str:
    lowered = value.lower()
    if not MAC_PATTERN.fullmatch(lowered):
        raise ValueError("must be six bytes such as 52:54:00:12:34:56")
    if int(lowered[:2], 16) & 1:
        raise ValueError("is a multicast address; a guest needs a unicast one")
    return lowered


def _checked_address(value: str) -> str:
    host, separator, port = value.rpartition(":")
    if not separator or not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise ValueError("must be HOST:PORT with a port from 1 to 65535")
    return value


# A daemon's loop stands still in a checkpoint for three answers of QEMU's and a copy, some 34 ms at most
# (`remuslike.guest.running`), and its heartbeat may be a fifth of the detection late besides.
DETECT_MS_MIN = 50.0


def _checked_detection(value: float) -> float:
    if not value >= DETECT_MS_MIN:
        raise ValueError(
            f"must be at least {DETECT_MS_MIN:g}, or a slow checkpoint is taken for a host's death"
        )
    return value


Mode = Literal["epoch", "event-tap", "adaptive"]
MODES: tuple[Mode, ...] = get_args(Mode)

Name = Annotated[str, AfterValidator(_checked_name)]
Mac = Annotated[str, AfterValidator(_checked_mac)]
Address = Annotated[str, AfterValidator(_checked_address)]


class Section(BaseModel):
    """Unknown keys are mistakes, values are what they say, and nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DiskSettings(Section):
    """A disk. A read-only one goes to QEMU as it is and must have the same contents on both hosts.

    `store`: a raw image's path, or a URI of `diskbuf.open_store`. `journal`: where released epochs become
    durable first; by default beside an image, and false for none. `shared`: both hosts reach the same image.
    """

    name: Name
    store: str = Field(min_length=1)
    journal: Annotated[Path, Field(strict=False)] | Literal[False] | None = None
    shared: bool = False
    read_only: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> DiskSettings:
        try:
            path = store_path(self.store)
        except StoreUriError as error:
            raise ValueError(f"store = {self.store!r}: {error}") from error
        if path is None and (self.read_only or self.shared):
            what = "read_only" if self.read_only else "shared"
            raise ValueError(f"{what}: only for an image in a file, not for store = {self.store!r}")
        if self.journal and (self.read_only or self.shared):
            what = (
                "a read-only disk" if self.read_only else "a shared disk, whose secondary keeps what is due,"
            )
            raise ValueError(f"journal = '{self.journal}': {what} has none")
        if self.read_only and self.shared:
            raise ValueError("shared: a read-only disk is never written to; leave it out")
        return self

    @property
    def image(self) -> Path:
        """The file of a read-only or shared disk."""
        path = store_path(self.store)
        assert path is not None
        return path

    @property
    def journal_path(self) -> Path | None:
        """Where the journal is to be; None: nowhere."""
        if self.journal is not None or self.read_only or self.shared:
            return self.journal or None
        path = store_path(self.store)
        return None if path is None else path.with_name(f"{path.name}.journal")


class NicSettings(Section):
    """A network interface, whose frames reach the LAN through `bridge` of this host."""

    mac: Mac
    bridge: str = Field(min_length=1, max_length=15)


class GuestSettings(Section):
    """The machine. Everything but `qemu`, `tracker`, paths, bridges and `local_arguments` must agree with
    the other side; the handshake checks it. `tracker`: how this host notices what the guest writes
    (`remuslike.guest.tracker`)."""

    machine: str = Field(default="q35", pattern=r"^[A-Za-z0-9._-]+(,[a-z0-9_-]+=[A-Za-z0-9._-]+)*$")
    accelerator: Literal["kvm", "tcg"] = "kvm"
    cpu: str = Field(default="max", pattern=r"^[A-Za-z0-9._,+=-]+$")
    vcpus: int = Field(default=1, ge=1, le=255)
    memory_mib: int = Field(ge=16, le=4 << 20)
    kernel: Annotated[Path | None, Field(strict=False)] = None
    initrd: Annotated[Path | None, Field(strict=False)] = None
    append: str = ""
    qemu: str = "qemu-system-x86_64"
    tracker: Literal["auto", "pagemap-scan", "soft-dirty"] = "auto"
    disks: list[DiskSettings] = Field(default=[], max_length=16)
    nics: list[NicSettings] = Field(default=[], max_length=8)
    extra_arguments: list[str] = []
    local_arguments: list[str] = []

    @model_validator(mode="after")
    def _consistent(self) -> GuestSettings:
        for label, values in (
            ("disks.name", [disk.name for disk in self.disks]),
            ("nics.mac", [nic.mac for nic in self.nics]),
        ):
            for value in values:
                if values.count(value) > 1:
                    raise ValueError(f"{label}: {value!r} is there twice")
        if self.initrd and not self.kernel:
            raise ValueError("initrd: needs a kernel beside it")
        refuse_arguments(self.machine, [*self.extra_arguments, *self.local_arguments])
        return self


class EpochSettings(Section):
    """When checkpoints are taken (`remuslike.engine.policy`).

    `epoch_ms`: between two of them; of "adaptive" the ceiling; of "event-tap" how long outputs wait that
    aren't among its `taps`. `floor_ms`: the shortest epoch of "adaptive". `window`: how many epochs may be on
    their way at once; the buffers' depth also bounds it.
    """

    mode: Mode = "epoch"
    epoch_ms: float = Field(default=25, ge=1, le=10_000)
    taps: list[Literal["net", "disk"]] = Field(default=["net", "disk"], min_length=1)
    floor_ms: float = Field(default=0, ge=0, le=10_000)
    window: int = Field(default=2, ge=1, le=8)

    @model_validator(mode="after")
    def _consistent(self) -> EpochSettings:
        if len(set(self.taps)) < len(self.taps):
            raise ValueError(f"taps = {self.taps}: names one twice")
        if self.floor_ms > self.epoch_ms:
            raise ValueError(f"floor_ms = {self.floor_ms:g}: is over epoch_ms = {self.epoch_ms:g}")
        return self


class BufferSettings(Section):
    """Where the guest's frames wait (`netbuf.choose`), and how much held output is kept in memory, a network
    interface and a disk each. Without `network_limit_mib` an interface's is sized from `link_mbit`, the rate
    of the LAN, and the epoch."""

    hold: Literal["auto", "plug", "tap"] = "auto"
    link_mbit: int = Field(default=10_000, ge=1, le=1_000_000)
    network_limit_mib: int | None = Field(default=None, ge=1, le=65_536)
    disk_limit_mib: int = Field(default=256, ge=1, le=65_536)


class LinkSettings(Section):
    """`address`: where the secondary listens and the primary connects. `successor`: where a secondary that
    has taken over looks for a secondary of its own. `ack`: whether a secondary acknowledges an epoch as soon
    as it has it all in memory, or once its disk writes are durable in the journals."""

    address: Address
    successor: Address | None = None
    detect_ms: Annotated[float, AfterValidator(_checked_detection)] = Field(default=100, le=60_000)
    ack: Literal["memory", "durable"] = "memory"


def split_address(address: str) -> tuple[str, int]:
    """Host and port of a checked address; an IPv6 host stands in brackets, as in a URL."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


class FileWitnessSettings(Section):
    """A file that both sides reach: one machine, or shared storage with working locks."""

    kind: Literal["file"]
    path: Annotated[Path, Field(strict=False)]


class NoWitnessSettings(Section):
    """No third party. A partition then makes two active sides; the log says so."""

    kind: Literal["none"]


class LogSettings(Section):
    """Structured lines on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"


class Settings(Section):
    """One node's configuration file."""

    name: Name
    run_directory: Annotated[Path, Field(strict=False)]
    on_secondary_loss: Literal["solo", "stall"] = "solo"
    guest: GuestSettings
    epoch: EpochSettings = EpochSettings()
    buffers: BufferSettings = BufferSettings()
    link: LinkSettings
    witness: Annotated[FileWitnessSettings | NoWitnessSettings, Field(discriminator="kind")]
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _durable_somewhere(self) -> Settings:
        if self.link.ack == "durable":
            for number, disk in enumerate(self.guest.disks):
                if not disk.read_only and disk.journal_path is None:
                    raise ValueError(f"guest.disks.{number}.journal: link.ack = 'durable' needs one")
        return self

    @property
    def control_path(self) -> Path:
        """The unix socket that answers `remuslike status`."""
        return self.run_directory / "control.sock"


# A unix socket's path is bounded by sizeof(sockaddr_un.sun_path) = 108, unix(7); our longest
# file name in the run directory is "control.sock" or "disk-" plus a disk's name.
RUN_DIRECTORY_BYTES_MAX = 108 - len("/disk-") - 15 - len(".sock") - 1


def load_settings(path: Path) -> Settings:
    """Read and check a configuration file; ConfigurationError names the file and every bad key."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: can't be read: {error}") from error
    return parse_settings(text, str(path))


def parse_settings(text: str, source: str) -> Settings:
    """As `load_settings`, from text; `source` names it in errors."""
    try:
        document = tomllib.loads(text)
        _refuse_zero_bytes(document, source)
        settings = Settings.model_validate(document)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{source}: is not TOML: {error}") from error
    except ValidationError as error:
        problems = "; ".join(_explain(dict(problem)) for problem in error.errors())
        raise ConfigurationError(f"{source}: {problems}") from error
    if len(os.fsencode(settings.run_directory)) > RUN_DIRECTORY_BYTES_MAX:
        raise ConfigurationError(
            f"{source}: run_directory: {str(settings.run_directory)!r} is longer than"
            f" {RUN_DIRECTORY_BYTES_MAX} bytes, too long for unix sockets in it"
        )
    return settings


def _refuse_zero_bytes(value: object, source: str, key: str = "") -> None:
    """No string of a configuration may contain what ends one for the kernel."""
    if isinstance(value, str) and "\0" in value:
        raise ConfigurationError(f"{source}: {key} = {value!r}: contains a zero byte")
    if isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for name, part in parts:
            _refuse_zero_bytes(part, source, f"{key}.{name}".lstrip("."))


def _explain(problem: dict[str, object]) -> str:
    location = problem["loc"]
    assert isinstance(location, tuple)
    key = ".".join(str(part) for part in location) or "the file"
    if problem["type"] == "missing":
        return f"{key}: is missing"
    if problem["type"] == "extra_forbidden":
        return f"{key}: is not a known key (value {problem['input']!r})"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if isinstance(problem["input"], dict | list):
        return f"{key}: {message}"
    return f"{key} = {problem['input']!r}: {message}"
