"""Bad input, by the thousand: hypothesis makes up NBD clients, an oracle says what they are owed.

`test_fuzz.py` runs a fixed selection; `python -m tests.fuzz --seconds N` goes on for as long as it may.
"""
