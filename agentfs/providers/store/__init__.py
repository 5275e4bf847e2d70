"""The Store port's providers: `memory` (nothing survives) and `sqlite` (one durable file)."""
