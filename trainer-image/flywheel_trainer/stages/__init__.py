"""The stages, one module each with `run(ctx) -> StageOutcome`; imported only when they run."""
