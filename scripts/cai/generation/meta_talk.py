"""Talk about a revision, or instead of one: "Here is the corrected version", "I changed the wrong date"."""

from __future__ import annotations

import re

from cai.generation.verdicts import read_verdict

VERDICT_WORDS = 25  # a text of so many words that gives a verdict gives nothing else

_EDITED = r"(?:revised|rewritten|corrected|improved|updated|edited|reworded|rephrased|amended|modified|fixed)"
_TEXT = r"(?:answer|response|version|text|reply|revision|rewrite|draft)"
_DID = (
    r"(?:revised|rewritten|rewrote|reworded|rephrased|changed|removed|corrected|updated|replaced|added|fixed|"
    r"edited|amended|modified|shortened|softened|clarified|toned\ down|left\ out|taken\ out|took\ out|"
    r"omitted|adjusted|kept|dropped|cut|deleted|swapped|expanded|reworked|made)"
)
_DOES = (
    r"(?:avoids?|removes?|adds?|corrects?|fixes|replaces|improves|addresses|keeps?|drops?|omits?|clarifies|"
    r"makes|provides?|includes?|acknowledges?|leaves?|gives?|explains?|is\ (?:more|less|now|no\ longer)|"
    r"no\ longer|now|does\ not|doesn't|still)"
)
_ABOUT = (  # what an editor's note speaks of
    r"(?:answer|response|version|original|wording|tone|sentence|critique|principle|claim|error|mistake|"
    r"inaccura\w+|incorrect|wrong|false|harmful|dangerous|unsafe|offensive|biased|misleading|advice|refusal)"
)
_META = re.compile(
    rf"""
    \b(?:here\ (?:is|are)|here's|below\ is|this\ is)\ (?:the|a|an|my|your)\ (?:\w+,?\ ){{0,2}}?
        (?:{_EDITED}|new|better|safer|clearer|shorter)\ (?:\w+\ )?{_TEXT}\b
    | \b(?:here\ (?:is|are)|here's|below\ is)\ (?:the|a|my|your)\ {_TEXT}\ (?:\w+\ )?{_EDITED}\b
    | ^\W*(?:here\ is|here's)\ (?:how|what)\ (?:the|a|my)\ (?:\w+\ )?{_TEXT}\ (?:should|could|would|might)\b
    | ^\W*(?:{_EDITED}|new|original|better|improved)\ {_TEXT}\W*(?::|\n|\Z)
    | ^\W*(?:original|revised|revision|corrected|rewritten|correction|rewrite)\b[\W]*:
    | \b(?:the|this|that|your)\ critiques?\b | \bcritique\ request\b | \brevision\ request\b
    | \bI(?:\ have|'ve)?\ (?:revised|rewritten|rewrote|reworded|rephrased)\b
    | \bI(?:\ have|'ve)?\ (?:also\ |therefore\ |only\ )?{_DID}\b[^.!?\n]*\b{_ABOUT}\b
    | \bas\ requested,?\ I\b
    | \bI(?:\ have|'ve)\ (?:changed|removed|corrected|updated)\ the\b
    | \b(?:the|my)\ (?:original|initial|revised|previous|earlier|first)\ (?:answer|response|reply)\b
    | \bmy\ (?:previous|first|earlier)\ (?:answer|response)\b
    | \b(?:according\ to|in\ line\ with)\ the\ principle\b(?!\ of)
    | \bthe\ (?:response|answer)\ (?:must|should|needs\ to)\ be\ (?:changed|{_EDITED})\b
    | \b(?:the|this)\ (?:response|answer)\ (?:has\ been|was|is\ now)\ (?:changed|{_EDITED})\b
    | \A\W*the\ (?:\w+\ )?(?:response|answer)\ (?:should|would|must|could|needs?|might|can|ought)\b
    | \A\W*(?:the|this)\ (?:\w+\ )?response\ (?:is|was|has|does|did|fails|seems|looks|remains|says|said)\b
    | \A\W*(?:the|this)\ (?:\w+\ )?answer\ (?:is|was|looks|seems|remains)\ (?:\w+\ )?
        (?:fine|good|okay|ok|correct|acceptable|adequate|unchanged|harmful|misleading|inaccurate|unhelpful)\b
    | ^\W*(?:the|this|my)\ (?:{_EDITED}|new)\ {_TEXT}\ (?:\w+\ )?{_DOES}\b
    | \b(?:this|the)\ (?:revision|rewrite|rewording|new\ wording)\ (?:\w+\ )?{_DOES}\b
    | ^\W*this\ (?:version|response)\ (?:now\ )?
        (?:avoids|removes|corrects|addresses|no\ longer|is\ (?:more|less))\b
    | \A\W*(?:please\ )?(?:rewrite|revise|change|edit|correct|rephrase|reword|replace|remove|shorten|amend)
        \ (?:the|this|that|your)\ (?:\w+\ )?
        (?:response|answer|reply|text|advice|sentence|wording|claim|part)\b
    | \bI\ (?:would|will|'ll|should|suggest|recommend|propose)\ (?:(?:also|therefore)\ )?
        (?:revis\w+|rewrit\w+|reword\w*|rephras\w+|chang\w+|edit\w*|correct\w*|replac\w+)
        \ (?:the|this|that|it)\b(?:\ \w+)?(?:\ (?:response|answer|reply|sentence|wording)\b|\ (?:to|so)\b)
    | \bI'd\ (?:revise|rewrite|reword|rephrase|change|edit|correct|replace)\ (?:the|this|that|it)\b
    | \A\W*(?:you(?:'re|\ are)\ right\b|good\ (?:point|catch)\b|thank(?:s|\ you)\ for\ (?:the|your)\ feedback
        |I\ apologi[sz]e\ for\ (?:the|my|any)\ (?:\w+\ )?(?:error|mistake|confusion|oversight))
    | \bas\ the\ (?:critic|editor|reviewer)\ (?:point|note|says|said|suggest|ask|want)
    | \bthis\ (?:corrects|fixes|replaces|improves)\ the\b[^.\n]{{0,40}}\b(?:version|answer|response)\b
    | ^\W*(?:changes|revisions|edits|corrections)\ (?:made|in\ this|to\ the)\b
    | ^\W*(?:what\ (?:I\ |was\ |has\ )?changed|summary\ of\ changes
        |(?:reason|explanation)\ (?:for|of)\ (?:the\ |this\ )?(?:change|revision|edit|correction)s?)\b
    | [(\[](?:note:?\ )?(?:{_EDITED}|changed|removed|replaced|added)\b[^)\]\n]*[)\]]\W*\Z
    | ^\W*(?:editor'?s?\ )?note\b\W*:?[^\n]*\b(?:{_EDITED}|changed|removed|replaced|was\ wrong)\b
    | \A[^\n]{{0,60}}\bmy\ (?:mistake|bad|apologies)\b[:.,!] | \A\W*I\ stand\ corrected\b
    | \A\W*(?:an?|the)\ (?:better|safer|kinder|clearer|improved|possible|more\ \w+)\ (?:\w+\ ){{1,2}}
        (?:might|would|could|should)\ (?:be|read|say)\b[^\n.]{{0,15}}:
    | \A\W*(?:take\ out|leave\ out|cut|delete|drop|remove|replace|omit)
        \ (?:(?:the|this|that|every|all|any)\ )?
        (?:word|phrase|sentence|line|paragraph|claim|joke|reference|mention|part|advice)s?\b
    | \n\s*[\[(*_]+[^\n]*\b(?:tone|wording|earlier\ text|original|previous|removed|replaced|is\ gone
        |no\ longer)\b[^\n]*[\])*_]+\W*\Z
    # German, French, Spanish, Italian, Chinese
    | \b(?:überarbeitete|verbesserte|korrigierte|geänderte|neue)\ (?:antwort|fassung|version)\b
    | \bich\ habe\b[^.!?\n]*\b(?:antwort|satz|fehler|falsch\w*|text|stelle|formulierung|angabe)\b
        [^.!?\n]*\b(?:ersetzt|geändert|korrigiert|entfernt|überarbeitet|angepasst|umformuliert|gestrichen)\b
    | \bdie\ (?:ursprüngliche|erste)\ (?:antwort|fassung)\b | \bdie\ antwort\ (?:wurde|muss|sollte)\b
    | \b(?:réponse|version)\ (?:révisée|corrigée|améliorée|modifiée|initiale|originale)\b
    | \bj'ai\ (?:corrigé|remplacé|modifié|supprimé|reformulé|retiré)\b[^.!?\n]*
        \b(?:réponse|phrase|erreur|texte|faux|fausse)\b
    | \b(?:respuesta|versión)\ (?:revisada|corregida|mejorada|modificada|original)\b
    | \bhe\ (?:corregido|cambiado|modificado|eliminado|reescrito|revisado)\b[^.!?\n]*
        \b(?:respuesta|frase|error|texto)\b
    | \b(?:risposta|versione)\ (?:rivista|corretta|modificata|originale)\b
    | (?:修改|修订|改进|更正|修正)后的?(?:回答|版本|答案|回复|内容)?\s*(?:[:：]|如下)
    | ^(?:以下|这)是(?:修改|修订|改进|更正)后的
    | (?:原|原来的|之前的)(?:回答|答案|回复)
    """,
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)

_TOPIC = re.compile(
    r"\b(criti|feedback|apolog|revis|rewrit|reword|rephras|edit|correct|principle|response|version)", re.I
)


def is_meta_talk(text: str, instruction: str) -> bool:
    """Whether a text speaks of having been revised, of its critique, or of what should be revised, and the
    instruction is not about that."""
    if _TOPIC.search(instruction):
        return False
    return bool(_META.search(text)) or (len(text.split()) <= VERDICT_WORDS and read_verdict(text) is not None)
