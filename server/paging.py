"""Page tokens: where the next page of a search begins, signed.

A token holds the index version, a digest of the search and an offset, so that it can neither be
forged nor used for another search or another version.
"""

from __future__ import annotations

import base64
import hashlib
import hmac

from server.errors import PageTokenExpiredError, UndecodableError

_TAG_BYTES = 16
_OFFSET_BYTES = 4


class PageTokens:
    """Signs and reads the page tokens of one index version.

    Args:
        index_version: the version.
        key: the secret that signs.
    """

    def __init__(self, index_version: str, key: bytes) -> None:
        self._key = hashlib.blake2b(key, digest_size=32).digest()
        self._version_tag = self._tag(index_version.encode())

    def sign(self, search: bytes, offset: int) -> str:
        """Return the token of the page of a search that begins at ``offset``.

        Args:
            search: the search, the same bytes for all its pages.
            offset: how many candidates come before the page.
        """
        content = self._version_tag + self._tag(search) + offset.to_bytes(_OFFSET_BYTES)
        return base64.urlsafe_b64encode(content + self._tag(content)).decode()

    def offset(self, token: str, search: bytes) -> int:
        """Return where the page of a search begins.

        Raises:
            UndecodableError: if this server did not sign the token.
            PageTokenExpiredError: if it is of another index version or of another search.
        """
        try:
            signed = base64.b64decode(token.encode(), altchars=b"-_", validate=True)
        except ValueError:
            signed = b""
        content, tag = signed[:-_TAG_BYTES], signed[-_TAG_BYTES:]
        if not hmac.compare_digest(self._tag(content), tag):
            raise UndecodableError(
                "page_token is none that this server signed; leave it empty for the first page"
            )
        version_tag, search_tag = content[:_TAG_BYTES], content[_TAG_BYTES : 2 * _TAG_BYTES]
        if version_tag != self._version_tag:
            raise PageTokenExpiredError(
                "page_token belongs to an index version that is gone; "
                "leave it empty for the first page"
            )
        if search_tag != self._tag(search):
            raise PageTokenExpiredError(
                "page_token belongs to another search; "
                "every field but page_token must be as it was for the page before"
            )
        return int.from_bytes(content[2 * _TAG_BYTES :])

    def _tag(self, content: bytes) -> bytes:
        return hashlib.blake2b(content, key=self._key, digest_size=_TAG_BYTES).digest()
