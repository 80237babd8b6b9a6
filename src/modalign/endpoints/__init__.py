"""Chat models behind an OpenAI-compatible address or in this process, with one protocol."""

from modalign.endpoints.cache import ReplyCache
from modalign.endpoints.chat import Chat, Reply, Request, ToolCall, Usage
from modalign.endpoints.errors import EndpointError, EndpointUsageError
from modalign.endpoints.http import ChatEndpoint
from modalign.endpoints.local import LocalChat
from modalign.endpoints.pace import Clock, Pace, Retries

__all__ = [
    "Chat",
    "ChatEndpoint",
    "Clock",
    "EndpointError",
    "EndpointUsageError",
    "LocalChat",
    "Pace",
    "Reply",
    "ReplyCache",
    "Request",
    "Retries",
    "ToolCall",
    "Usage",
]
