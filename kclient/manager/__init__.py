"""A manager starts, restarts and ends one kernel process, and has a client to it."""
