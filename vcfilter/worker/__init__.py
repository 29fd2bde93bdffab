"""The codec worker: encodes and decodes for programs that hold no Python (docs/worker.md)."""
