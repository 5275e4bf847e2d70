"""``python -m agentfs.cli``: the same entry as the installed command; nothing else."""

from agentfs.cli.command import main

if __name__ == "__main__":
    main()
