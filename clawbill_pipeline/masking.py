"""Takes secrets out of text that people will read: by the forms that issuers give them, and by the names of fields."""

from __future__ import annotations

import re

_SECRETS = re.compile(
    r"""(?ix)
    \b(?:sk|rk|pk)_(?:live|test)_\w+ | \bwhsec_[\w+/=]+ | \bsk-[\w-]{8,} | \bgh[pousr]_\w{8,} | \bxox[a-z]-[\w-]{8,}
    | \bclawbill_[a-z0-9-]+_[\w-]{20,}
    | \bAKIA[0-9A-Z]{12,} | \beyJ[\w-]{8,}\.[\w-]+\.[\w-]* | -----BEGIN[ A-Z]*PRIVATE\ KEY-----[^-]*
    | (?<=bearer\ )[^\s"',]+ | (?<=basic\ )[\w+/=]{8,} | (?<=://)[^\s/@:"]*:[^\s/@"]+(?=@)
    | (?<="password":)\s*"[^"]*" | (?<="passwd":)\s*"[^"]*" | (?<="secret":)\s*"[^"]*" | (?<="token":)\s*"[^"]*"
    | (?<="api_key":)\s*"[^"]*" | (?<="apikey":)\s*"[^"]*" | (?<="authorization":)\s*"[^"]*"
    | (?<=token=)[^\s&"']+ | (?<=key=)[^\s&"']+ | (?<=password=)[^\s&"']+ | (?<=secret=)[^\s&"']+
    | (?<="access_token":)\s*"[^"]*" | (?<="client_secret":)\s*"[^"]*"
    """
)


def without_secrets(text: str) -> str:
    """``text`` with ``***`` where a secret was."""
    return _SECRETS.sub("***", text)
