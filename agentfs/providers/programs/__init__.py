"""Programs an agent may run: any executable (`execute`), a trusted class (`inline`), or a prompt (`llm`)."""
