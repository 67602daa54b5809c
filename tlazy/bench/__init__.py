"""Benchmarks: any shape of linear and conv1d beside PyTorch and its peers.

``tlazy bench`` measures; :mod:`tlazy.report` draws. The parts, in the order of their use:
operations, chains, networks (what can be measured), problems, shapes (sizes as typed), suites
(named lists of problems), peers (who computes), inputs, calling, timing, correctness, machine (what
was measured on), record (the JSON), rows, group (peers side by side), measuring, tuning; progress,
table, stopping, command.
"""
