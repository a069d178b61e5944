"""Benchmarks: what holding output costs, measured as ratios within one run.

`environment` says where a run was made, `figures` (pure) makes medians and ratios of its raw samples and is
its JSON, `view` its tables; each command has a module of its own, such as `net`.
"""
