"""Device code and launchers: Triton kernels for linear and direct conv1d. Imports only torch, triton and numpy."""
