"""The proof that a release is atomic: every crash of a journal and its store, recovered and compared.

disk       records what reaches two files, and says what a crash at any instant may leave of them
workload   a seeded history of epochs, retirements, failures and kills, by the journal under test
oracle     which image must be found after a crash; shares no code with the journal
proof      takes every crash point of a history, recovers, compares
mutations  broken journals, each of which the proof must catch
"""
