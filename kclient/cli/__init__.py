"""The `kclient` command."""
