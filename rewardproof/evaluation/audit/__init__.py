"""What would a policy exploit in a reward model? Perturbations with a known direction, and verdicts by their intervals."""

from rewardproof.evaluation.audit.features import FEATURES, Slope, slopes
from rewardproof.evaluation.audit.limits import FLIPS, SERVING, SLOPES, missed_limits, read_limits
from rewardproof.evaluation.audit.measures import Weakness, difference, differences, shifts, spread, weaknesses
from rewardproof.evaluation.audit.passages import Passage, neutral_text, resized
from rewardproof.evaluation.audit.suite import PERTURBATIONS, Perturbation, perturbed
from rewardproof.evaluation.audit.variants import Case, CaseScores, Variant, make_case
from rewardproof.evaluation.audit.verdicts import Finding, finding, grade, strength

__all__ = [
    "FEATURES",
    "FLIPS",
    "PERTURBATIONS",
    "SERVING",
    "SLOPES",
    "Case",
    "CaseScores",
    "Finding",
    "Passage",
    "Perturbation",
    "Slope",
    "Variant",
    "Weakness",
    "difference",
    "differences",
    "finding",
    "grade",
    "make_case",
    "missed_limits",
    "neutral_text",
    "perturbed",
    "read_limits",
    "resized",
    "shifts",
    "slopes",
    "spread",
    "strength",
    "weaknesses",
]
