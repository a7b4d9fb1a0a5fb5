"""Reports: tables for the console, for markdown and for the page; figures; and the self-contained `report.html`.

Figures import matplotlib and the page imports jinja2 when they are called, so that a command that prints a table waits for neither.
"""

from rewardproof.report.constraint_figures import constraints_figure, proxy_points_figure
from rewardproof.report.factor_figures import factors_figure
from rewardproof.report.figure_style import SavedFigure, save_figure
from rewardproof.report.figures import (
    accuracy_figure,
    coefficients_figure,
    regimes_figure,
    reliability_figure,
    routing_figure,
    training_figure,
)
from rewardproof.report.heat_map import HeatMap, heat_maps
from rewardproof.report.optimisation_figures import course_figure, hacking_figure, policy_figure, similarity_figure
from rewardproof.report.page import Page, PageFigure, Remark, Section, provenance_rows, write_page
from rewardproof.report.shift_figure import shift_figure
from rewardproof.report.side_by_side import SideBySide, side_by_side
from rewardproof.report.strength_figure import strength_figure
from rewardproof.report.tables import Cell, Table, console_table, format_cell, format_gain, format_interval, markdown_table
from rewardproof.report.weight_figure import weight_figure

__all__ = [
    "Cell",
    "HeatMap",
    "Page",
    "PageFigure",
    "Remark",
    "SavedFigure",
    "Section",
    "SideBySide",
    "Table",
    "accuracy_figure",
    "coefficients_figure",
    "console_table",
    "constraints_figure",
    "course_figure",
    "factors_figure",
    "format_cell",
    "format_gain",
    "format_interval",
    "hacking_figure",
    "heat_maps",
    "markdown_table",
    "policy_figure",
    "provenance_rows",
    "proxy_points_figure",
    "regimes_figure",
    "reliability_figure",
    "routing_figure",
    "save_figure",
    "shift_figure",
    "side_by_side",
    "similarity_figure",
    "strength_figure",
    "training_figure",
    "weight_figure",
    "write_page",
]
