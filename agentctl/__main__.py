"""``python -m agentctl``: the same entry as the installed command; nothing else."""

from agentctl.cli import main

if __name__ == "__main__":
    main()
