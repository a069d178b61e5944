"""The kernel lab: Debian's kernel under QEMU, on this machine's own files, for what this kernel lacks.

`remuslike.lab.lab.Lab` boots it. This package imports nothing by itself: the lab's own side of it
(`agent`) starts in an emulated machine, where every module costs.
"""
