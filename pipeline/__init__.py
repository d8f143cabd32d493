"""promissory: a Linux fleet's security-audit events, from the kernel to Kafka, with the books to prove it."""

import os

__all__ = ["__version__"]

__version__ = "0.1.0"

# No threads for linear algebra, of which there is none: such a thread would keep its capabilities' bounding
# set (privilege.py).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
