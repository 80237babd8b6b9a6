"""Programs that a language model wrote, run where they can do nothing but compute and ask tools."""

from modalign.tools.sandbox.fence import Fence
from modalign.tools.sandbox.limits import Limits
from modalign.tools.sandbox.run import (
    Call,
    Function,
    Ran,
    ToolFailure,
    fence_for,
    run_program,
)

__all__ = ["Call", "Fence", "Function", "Limits", "Ran", "ToolFailure", "fence_for", "run_program"]
