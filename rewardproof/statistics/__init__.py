"""Statistics: intervals, estimators and their inputs' checks. numpy and scipy only; nothing here knows a reward model."""

from rewardproof.statistics.best_of_n import best_of_n, best_of_n_weights, kl_upper_bound
from rewardproof.statistics.bootstrap import (
    Interval,
    cluster_bootstrap,
    cluster_bootstrap_columns,
    paired_difference,
    seed_interval,
    wilson,
)
from rewardproof.statistics.calibration import Reliability, ReliabilityBin, expected_calibration_error, reliability
from rewardproof.statistics.clustering import cluster, mutual_information, softmax_regression
from rewardproof.statistics.correlation import is_constant, kendall, pearson, spearman, within_cluster_correlation
from rewardproof.statistics.crossed import crossed_interval
from rewardproof.statistics.denoising import DenoisedMean, denoised_mean
from rewardproof.statistics.entropy import effective_number, effective_rank, entropy
from rewardproof.statistics.gated import gated_labels
from rewardproof.statistics.nelder_mead import NelderMead
from rewardproof.statistics.overoptimisation import GoldLaw, fit_law
from rewardproof.statistics.regression import cluster_slopes, determined
from rewardproof.statistics.similarity import KindSimilarity, kind_similarity
from rewardproof.statistics.simultaneous import simultaneous_level
from rewardproof.statistics.smoothing import local_linear
from rewardproof.statistics.surface import Surface, density
from rewardproof.statistics.weighted import WeightedPart, weighted_interval

__all__ = [
    "DenoisedMean",
    "GoldLaw",
    "Interval",
    "KindSimilarity",
    "NelderMead",
    "Reliability",
    "ReliabilityBin",
    "Surface",
    "WeightedPart",
    "best_of_n",
    "best_of_n_weights",
    "cluster",
    "cluster_bootstrap",
    "cluster_bootstrap_columns",
    "cluster_slopes",
    "crossed_interval",
    "denoised_mean",
    "density",
    "determined",
    "effective_number",
    "effective_rank",
    "entropy",
    "expected_calibration_error",
    "fit_law",
    "gated_labels",
    "is_constant",
    "kendall",
    "kind_similarity",
    "kl_upper_bound",
    "local_linear",
    "mutual_information",
    "paired_difference",
    "pearson",
    "reliability",
    "seed_interval",
    "simultaneous_level",
    "softmax_regression",
    "spearman",
    "weighted_interval",
    "wilson",
    "within_cluster_correlation",
]
