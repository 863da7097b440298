"""Evaluations and training histories as tables, figures and self-contained pages."""

from hybridsnn.reporting.records import NetworkReport, Provenance
from hybridsnn.reporting.report import write_report
from hybridsnn.reporting.results import Result
from hybridsnn.reporting.table_page import write_table_page
from hybridsnn.reporting.tables import accuracy_table, as_text, markdown, results_table

__all__ = [
    "NetworkReport",
    "Provenance",
    "Result",
    "accuracy_table",
    "as_text",
    "markdown",
    "results_table",
    "write_report",
    "write_table_page",
]
