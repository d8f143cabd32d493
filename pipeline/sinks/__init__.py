"""Sinks: where encoded batches become safe."""
