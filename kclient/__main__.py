"""``python -m kclient`` is the `kclient` command."""

from kclient.cli.main import main

if __name__ == "__main__":
    main()
