"""Tests that run in the kernel lab, and how they get there.

Outside the lab, a test marked `lab` is replaced by a `remote.LabItem` of the same name, whose run waits for
what its namesake comes to in the lab; the first one starts pytest there for all of them, in one boot. There,
`inside.Reporter` tells how each test ended, and the outside reports it as its own.
"""
