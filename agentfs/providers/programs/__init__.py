"""Programs an agent may run: any executable (`execute`), or a trusted class in the runtime (`inline`)."""
