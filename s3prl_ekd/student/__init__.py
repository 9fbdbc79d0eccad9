"""The student: its network, its prediction heads, its folder on disk, and the key tables to other formats."""
