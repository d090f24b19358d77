"""Proof on a graphics card: `python -m tests.gpu` checks and times what needs one; see `make gpu-check`."""
