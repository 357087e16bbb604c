"""What operator, trainer, analysis and gateway all speak: pydantic models and the standard library, nothing else."""
