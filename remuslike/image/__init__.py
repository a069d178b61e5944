"""Guest images out of Debian packages: builds, caches and describes them, and makes data disks for them."""

from remuslike.image.accelerator import Accelerator, probe_accelerator
from remuslike.image.arguments import (
    AGENT_PORT,
    ECHO_LOG,
    ECHO_PORT,
    LEASE_FILE,
    READY_LINE,
    SERVICE_PORT,
    STOPPED_LINE,
    Service,
    kernel_command_line,
)
from remuslike.image.build import GuestImage, Progress, build_image, default_cache_directory, find_image
from remuslike.image.clock import host_tsc_khz
from remuslike.image.disk import make_data_disk
from remuslike.image.errors import ImageError

__all__ = [
    "AGENT_PORT",
    "ECHO_LOG",
    "ECHO_PORT",
    "LEASE_FILE",
    "READY_LINE",
    "SERVICE_PORT",
    "STOPPED_LINE",
    "Accelerator",
    "GuestImage",
    "ImageError",
    "Progress",
    "Service",
    "build_image",
    "default_cache_directory",
    "find_image",
    "host_tsc_khz",
    "kernel_command_line",
    "make_data_disk",
    "probe_accelerator",
]
