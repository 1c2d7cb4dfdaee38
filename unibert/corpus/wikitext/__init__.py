"""Plain text of wiki pages: isolation → tokens → rendering → holes."""

from unibert.corpus.wikitext.page import ENGLISH_PREFIXES, plain_text

__all__ = ["ENGLISH_PREFIXES", "plain_text"]
