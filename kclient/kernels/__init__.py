"""Finding and running kernels: specs, connection files, processes. Knows nothing of channels or clients."""
