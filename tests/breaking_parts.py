"""Encoders of a user's own that break in different ways."""

from __future__ import annotations

import os
import signal

from torch import nn

from modalign.errors import ModalignError


class Killed(nn.Module):
    def __init__(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Refused(nn.Module):
    def __init__(self) -> None:
        raise ModalignError("this encoder cannot be used; choose another")


class Defective(nn.Module):
    def __init__(self) -> None:
        raise ZeroDivisionError("a defect")
