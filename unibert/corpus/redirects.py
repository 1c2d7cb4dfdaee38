"""Redirects of MediaWiki: pages that lead to another and have no text of their own."""

from __future__ import annotations

import re
import unicodedata

# MediaWiki's words in its languages, all of them for every wiki, because wikis also take those of related languages.
# Letters of either case count as equal. "_" stands for a space or "_".
_WORDS = (
    "redirect aanstuur adkas ail-cyfeirio ailgyfeirio alidirektu alidirekti alih athsheoladh átirányítás "
    "ÀTÚNJÚWE beralîkirin birzuzendu doorverwijzing elekeza i̇stiqamətləndirmə istiqamətləndirmə lencong "
    "leidt_öm neiddereschen ohjaus omdiriger omdirigering ömleide ömleidung patrz peradresavimas přesměruj presmeruj "
    "preusmjeri preusmeri preusmeritev przekieruj pusapuna redireccion redirección redirecció redireciona "
    "redirecionamento redirecteaza redirection reendrecera ridrejto rimando rindirizza rinvia rinvio suuna tam "
    "tilvísun trochferwizing uudelleenohjaus viruleedung weiterleitung wiederleiden yoʻnaltirish yo'naltirish "
    "yonaltirish yönləndirmə yönlendirme yönlendir yönlendi̇rme yönlendi̇r đổi "
    "ανακατευθυνση айдау виж види йүнәлтеү көсөрүү перанакіраванне перанакіраваньне перанакираваньне перенапр "
    "перенаправление перенаправлення пренасочване пренасочување преусмери преусмјери равона_кунед "
    "равонакунӣ тағйири_масир утаарыы юнәлтү хьажорг дӏасахьажорг прѣнаправлєниѥ վերահղում გადამისამართება "
    "הפניה ווייטערפירן تحويل تغییرمسیر تغییر_مسیر رجوع_مکرر منتقل مخ_گرځونه ڕەوانەکردن توجيه "
    "अनुप्रेषित अनुप्रेषण पुनर्प्रेषित पुनर्निर्देशन पुनर्निदेशन पुनर्निर्देश পুনর্নির্দেশ পুননির্দেশ পুনঃনির্দেশ ਰੀਡਿਰੈਕਟ "
    "ਰੀਡਾਇਰੈਕਟ ଲେଉଟାଣି வழிமாற்று దారిమార్పు ದಾರಿಮಾರ್ಪು ಪುನರ್ನಿರ್ದೇಶನ തിരിച്ചുവിടുക തിരിച്ചുവിടൽ යළියොමුව เปลี่ยนทาง "
    "បញ្ជូនបន្ត ប្ដូរទីតាំងទៅ ប្តូរទីតាំងទៅ ປ່ຽນທາງ 転送 リダイレクト 重定向 重新導向 넘겨주기"
)
_BEGINNING = 1000  # characters of a page that can hold the redirect
_REDIRECT = re.compile(
    r"\s*#(?:"
    + "|".join(re.escape(word).replace("_", "[ _]") for word in _WORDS.split())
    + r")\s*(?::\s*)?\[\[\s*:?(?P<target>[^\[\]|#\n]+)",
    re.IGNORECASE,
)


def redirect_target(wikitext: str) -> str | None:
    """Return the title to which a page leads by its text, None if it is no redirect: ``#REDIRECT [[Title]]``."""
    match = _REDIRECT.match(unicodedata.normalize("NFC", wikitext[:_BEGINNING]))
    return match["target"].strip() if match else None
