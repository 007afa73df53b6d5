"""Imported before numpy: no threads for its linear algebra.

OpenBLAS starts a thread per core when numpy is imported, 45 of the import's 95 ms of CPU. A function's
products are of a vector with some hundred others: nothing that threads would share.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
