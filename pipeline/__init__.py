"""promissory: a Linux fleet's security-audit events, from the kernel to Kafka, with the books to prove it."""

__all__ = ["__version__"]

__version__ = "0.1.0"
