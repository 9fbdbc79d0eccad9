"""The Lhotse road: manifests, Shar and tars as a stream of batches."""
