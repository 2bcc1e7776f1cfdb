"""The injected faults: what is broken, how the program must take it, and the campaign that counts both.

`python -m faults` (with `tests` on the path; `make faults`) runs the long campaign; `test_faults.py` a short one.
"""
