"""A small synthetic corpus in the layouts of s3prl's tasks."""
