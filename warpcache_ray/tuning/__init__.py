"""Calibration: what a model's own runs say about the policy that it needs."""

from warpcache_ray.policy_spec import load_policy, save_policy
from warpcache_ray.tuning.calibrate import calibrate
from warpcache_ray.tuning.profiler import Wish, profile_model

__all__ = ["Wish", "calibrate", "load_policy", "profile_model", "save_policy"]
