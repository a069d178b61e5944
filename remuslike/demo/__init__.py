"""The demo: protects a guest, kills its host under load, and examines what the survivor has.

It only orchestrates the daemons; nothing in them knows of it. `remuslike.demo.runner.run_demo` is the
way in. Nothing is imported here: the daemons' command line and the client process, both of which
should start quickly, come through this package.
"""
