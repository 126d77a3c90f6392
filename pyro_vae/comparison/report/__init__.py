"""Shows a comparison: tables for a terminal, figures, and one HTML page that contains everything."""

from pyro_vae.comparison.report.page import write_report
from pyro_vae.comparison.report.tables import difference_table, summary_table

__all__ = ["difference_table", "summary_table", "write_report"]
