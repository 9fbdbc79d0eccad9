"""What is found on a run's own data before it begins: groups of layers that are alike, units, principal components.

:mod:`.speech` chooses the utterances, and :mod:`.find` does all that a recipe asks for by :mod:`.similarity` (how alike
layers are), :mod:`.groups` (which belong together) and :mod:`.fits` (units and components). :mod:`.result` is what
comes out, as a file; :mod:`.kept` reads what a run or a cache keeps of it, and has it found where that is nothing.
"""
