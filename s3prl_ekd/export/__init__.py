"""Students out of training checkpoints, and into other formats."""
