"""New problems from old ones by other numbers (GSM-Symbolic style, arXiv 2410.05229), without a teacher."""

from __future__ import annotations

from isodistill.isomers.perturb.draws import Perturbed, perturb_rows
from isodistill.isomers.perturb.template import Template, derive_template

__all__ = ["Perturbed", "Template", "derive_template", "perturb_rows"]
