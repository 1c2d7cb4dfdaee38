"""Input files for the tests: MediaWiki exports, JSONL, and made-up text that passes the filters."""

import bz2
import json
import random
from html import escape
from pathlib import Path

from unibert.corpus.inputs import find_inputs
from unibert.corpus.readers import Document, DocumentReader

SITEINFO = """<siteinfo><sitename>Wikipedia</sitename><dbname>dewiki</dbname><namespaces>
<namespace key="0" case="first-letter" /><namespace key="6" case="first-letter">Datei</namespace>
<namespace key="14" case="first-letter">Kategorie</namespace></namespaces></siteinfo>"""


def page_xml(page_id: int, title: str, text: str, *, ns: int = 0, redirect: str = "", model: str = "wikitext") -> str:
    redirect_xml = f'<redirect title="{redirect}" />' if redirect else ""
    return (
        f"<page><title>{escape(title)}</title><ns>{ns}</ns><id>{page_id}</id>{redirect_xml}<revision><id>{page_id}1</id>"
        f"<timestamp>2020-01-01T00:00:00Z</timestamp><contributor><username>A</username><id>1</id></contributor>"
        f"<model>{model}</model><format>text/x-wiki</format>"
        f'<text xml:space="preserve">{escape(text)}</text><sha1>x</sha1></revision></page>\n'
    )


def dump_xml(*pages: str, siteinfo: str = SITEINFO) -> str:
    head = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10" xml:lang="de">'
    return f"{head}\n{siteinfo}\n{''.join(pages)}</mediawiki>\n"


def write_dump(path: Path, *pages: str) -> Path:
    path.write_bytes(bz2.compress(dump_xml(*pages).encode()))
    return path


def write_jsonl(path: Path, records: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def read(path: Path | str) -> tuple[list[Document], dict[str, int]]:
    """Return the documents of a file and the reader's counts."""
    (file,) = find_inputs([str(path)])
    reader = DocumentReader(file)
    documents = list(reader)
    return documents, dict(reader.counts)


def sentences(count: int, seed: int = 0, alphabet: str = "abcdefghijklmnoprstuvz") -> list[str]:
    """Return different lines of made-up words, the same for the same seed."""
    generator = random.Random(seed)
    words = ["".join(generator.choices(alphabet, k=generator.randint(2, 9))) for _ in range(300)]
    return [" ".join(generator.choices(words, k=generator.randint(12, 24))) + "." for _ in range(count)]
