"""Calibration: what a model's own runs say about the policy that it needs."""

from warpcache_ray.policy_spec import load_policy, save_policy
from warpcache_ray.tuning.profile import profile

__all__ = ["load_policy", "profile", "save_policy"]
