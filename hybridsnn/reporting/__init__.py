"""Evaluations and training histories as tables, figures and one self-contained page."""

from hybridsnn.reporting.records import NetworkReport, Provenance
from hybridsnn.reporting.report import write_report
from hybridsnn.reporting.tables import accuracy_table, as_text

__all__ = ["NetworkReport", "Provenance", "accuracy_table", "as_text", "write_report"]
