"""The cost of a model: parameters, multiply-accumulates, and measured time and memory."""

from .profiling import (
    ProfileRow,
    ProfileSettings,
    count_macs,
    count_macs_at,
    count_parameters,
    profile_model,
)
