"""One thread for numpy's products: the tests' own arithmetic is small and must not wait for itself
when the machine is busy. Set before numpy is first imported."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
