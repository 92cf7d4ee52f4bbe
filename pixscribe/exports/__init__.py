"""Data sets for other tools, made from what runs have left."""

from pixscribe.exports.export import ExportOptions, ExportSummary, export_runs
from pixscribe.exports.registry import FORMATS, find_exporter

__all__ = ["FORMATS", "ExportOptions", "ExportSummary", "export_runs", "find_exporter"]
