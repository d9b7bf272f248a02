"""What a model costs: parameters, multiply-accumulates, and measured time and memory."""

from .profiling import (
    ProfileRow as ProfileRow,
    ProfileSettings as ProfileSettings,
    count_macs as count_macs,
    count_macs_at as count_macs_at,
    count_parameters as count_parameters,
    profile_model as profile_model,
    write_profile as write_profile,
)
