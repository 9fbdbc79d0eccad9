"""Targets on disk: the teachers write them once, the loaders' workers read them in any order.

A cache is a folder of

- ``cache.json``: what the targets depend on, and the teachers' widths;
- ``targets-PPP-NNNNN.safetensors``: shards, each complete in itself. ``targets`` (N, D) are the frames of some cuts one
  after another in float16, all heads side by side; ``keys`` and ``frames`` (cuts,) say whose they are; ``checksums``
  are those of every :data:`BLOCK` rows, so that whatever is read is checked, and nothing else;
- ``index.safetensors``: where each cut is, made of the shards when all are there;
- ``initial.safetensors``: the weights that the student starts from;
- ``bad_recordings.tsv``: cuts that have no targets.

Files are mapped into memory and read where they are needed.
"""
