"""Everything that touches s3prl's own code: patches, hub entries, its runners. Nothing is imported until it is used."""
