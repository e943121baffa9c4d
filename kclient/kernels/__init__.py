"""Find and run kernels: specs, connection files, processes. No module here knows of channels or clients."""
