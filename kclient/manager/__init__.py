"""One kernel that this program owns: it starts, restarts and ends the process and has a client to it."""
