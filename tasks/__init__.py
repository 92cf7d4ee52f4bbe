"""What Prefect sees: one task for each stage, thin."""
