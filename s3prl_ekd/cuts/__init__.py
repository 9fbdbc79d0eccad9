"""The data of ``s3prl-ekd distill``: Lhotse's manifests, Shar folders and tars as a stream of batches.

A *source* is what ``data.cuts`` names: one or more manifests. An *entry* is a line of a manifest; it describes a *cut*,
which is a part or all of a *recording*. What a batch holds of a cut, perhaps cropped, is an *utterance*.
"""
