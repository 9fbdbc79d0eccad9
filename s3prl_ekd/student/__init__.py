"""The student: its network, its kinds, its prediction heads, its folder on disk, and checkpoints read as students."""
