"""pixscribe: batch image annotation with Gemini, from images to Parquet tables.

The library knows nothing of Prefect; `tasks/` and `flows/` wrap it.
"""

__version__ = "0.1.0"
