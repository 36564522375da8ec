"""The benchmarks of Bequest: every figure the project promises, measured beside its peers on this machine.

`python -m benchmarks` (or `make bench`) runs them all; `__main__` lists the options. Nothing here is imported
by the package itself.
"""
