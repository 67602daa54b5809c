"""Benchmarks: any shape of linear and conv1d beside PyTorch and its peers.

``tlazy bench`` measures; :mod:`tlazy.report` draws. The parts, in the order of their use:
operations, chains, networks (what can be measured), suites (named lists of it), peers (who
computes), correctness, timing, machine (what was measured on), record (the JSON), measuring,
tuning, table, command.
"""
