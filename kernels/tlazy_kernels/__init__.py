"""Triton kernels for linear and direct conv1d, with launchers.

Imports only torch, triton and numpy.
"""
