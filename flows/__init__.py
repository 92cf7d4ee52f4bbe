"""What runs, in which order: the Prefect flow and the command line."""
