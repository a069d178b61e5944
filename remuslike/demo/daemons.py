"""A daemon of one of the demo's hosts, and all it needs: configuration, directories, data disk."""

from __future__ import annotations

from remuslike.config import parse_settings
from remuslike.demo.observer import Daemon
from remuslike.demo.options import DemoOptions
from remuslike.demo.plan import Directories, GuestFiles, Role, configuration
from remuslike.demo.processes import Process, Program
from remuslike.image import make_data_disk


def start_daemon(
    role: Role, namespace: str, options: DemoOptions, seed: int, guest: GuestFiles, files: Directories
) -> Daemon:
    """Start `remuslike primary` or `secondary` in `namespace`; the caller ends its process."""
    text = configuration(role, options, guest, files)
    settings = parse_settings(text, f"the demo's configuration of the {role}")
    files.daemon(role).mkdir()
    files.run_directory(role).mkdir()
    files.configuration(role).write_text(text, "utf-8")
    make_data_disk(files.data_disk(role), options.data_disk_mib, seed=str(seed))
    arguments = (*options.daemon, role, "--config", str(files.configuration(role)))
    return Daemon(
        Process(Program(f"the {role}", namespace, arguments, files.log(role))), settings.control_path
    )
