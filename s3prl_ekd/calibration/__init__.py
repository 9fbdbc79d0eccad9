"""What is found on a run's own data before it begins: groups of a teacher's layers that are alike.

Each module is a step: :mod:`.speech` (which utterances), :mod:`.similarity` (how alike layers are), :mod:`.groups`
(which belong together), :mod:`.picture`, and :mod:`.find`, which does all of it for a recipe and keeps the result.
"""
