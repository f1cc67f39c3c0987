"""The small subcommands of `fer`."""
