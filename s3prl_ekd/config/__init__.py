"""Settings: how they are read (:mod:`.base`), and what may be said (the other modules)."""
