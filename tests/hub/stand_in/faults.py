"""What can go wrong between a client and the stand-in Hub: statuses, cut connections, lost replies."""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass
class Fault:
    """Befalls the next `times` requests of a method whose path matches.

    Args:
        method: as `"PUT"`.
        pattern: regular expression, found anywhere in the path.
        times: how often.
        status: answer with this status instead of doing what was asked.
        headers: of that answer, as `{"Retry-After": "0"}`.
        cut_upload: close the connection after this many bytes of the request's body.
        cut_download: close the connection after this many bytes of the answer's content.
        lose_reply: do what was asked, then close the connection without an answer.
    """

    method: str
    pattern: str
    times: int = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_upload: int | None = None
    cut_download: int | None = None
    lose_reply: bool = False

    def befalls(self, method: str, path: str) -> bool:
        """Whether it happens to this request; counts it if so."""
        if self.times < 1 or method != self.method or not re.search(self.pattern, path):
            return False
        self.times -= 1
        return True
