"""Search under a constraint: the setting that costs least and still meets a target.

Everything here works on functions that are handed to it, so it serves trimtab's codecs and other compressors alike.
"""

from trimtab.tune.bisect import Target, bisect, psnr_target, ratio_target
from trimtab.tune.bounds import for_psnr, for_ratio
from trimtab.tune.choice import Choice, Trial
from trimtab.tune.knapsack import knapsack
from trimtab.tune.pick import pick

__all__ = [
    "Choice",
    "Target",
    "Trial",
    "bisect",
    "for_psnr",
    "for_ratio",
    "knapsack",
    "pick",
    "psnr_target",
    "ratio_target",
]
