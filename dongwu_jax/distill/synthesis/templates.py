"""What the generator is asked: to continue a text, or to rewrite a passage in a chat."""

import re
from dataclasses import dataclass

CONTINUE = "continue"
LANGUAGES = ("zh", "en")
_CHINESE = re.compile("[\u4e00-\u9fff]")


@dataclass(frozen=True)
class Rewriting:
    """A chat template of one user message.

    Attributes:
        messages: by language, with {passage} where the passage goes.
        keeps_passage: whether the text to train on begins with the passage.
    """

    messages: dict[str, str]
    keeps_passage: bool = False


REWRITINGS = {
    "rephrase": Rewriting(
        {
            "zh": "请用准确、通顺的书面语改写下面的文字。保留全部事实、数字、日期和专有名词，"
            "不要增加原文没有的内容，只输出改写后的文字。\n\n{passage}",
            "en": "Rewrite the following text in clear, precise prose. Keep every fact, number, "
            "date and name, add nothing that it does not say, and answer with the rewritten text "
            "only.\n\n{passage}",
        }
    ),
    "question_answer": Rewriting(
        {
            "zh": "请根据下面的文字提出三到五个问题并逐一回答。问题不看原文也能读懂，"
            "答案只依据原文。每一对按“问：……”和“答：……”各占一行，不要输出其他内容。\n\n{passage}",
            "en": "Write three to five questions about the following text and answer each of them. "
            "A question must be understood without the text, an answer must follow from it. Begin "
            'their lines with "Question:" and "Answer:" and write nothing else.\n\n{passage}',
        },
        keeps_passage=True,
    ),
    "summary": Rewriting(
        {
            "zh": "请用一段话概括下面文字的要点，保留关键的数字、条件和结论，只输出概括。\n\n"
            "{passage}",
            "en": "Summarize the following text in one paragraph. Keep the figures, conditions and "
            "conclusions that matter, and answer with the summary only.\n\n{passage}",
        }
    ),
    "textbook": Rewriting(
        {
            "zh": "请把下面的文字改写成教科书中的一节：先解释概念，再说明道理，并举一个具体的例子。"
            "事实以原文为准，只输出这一节的正文。\n\n{passage}",
            "en": "Turn the following text into a section of a textbook: explain the notions, then "
            "the reasons, and give one worked example. Take the facts from the text, and answer "
            "with the section only.\n\n{passage}",
        }
    ),
}
TEMPLATES = (CONTINUE, *REWRITINGS)


def chat_message(template: str, passage: str, language: str) -> str:
    """The message that asks for a rewriting, in the language of the passage if it is `auto`."""
    if language == "auto":
        language = "zh" if _is_chinese(passage) else "en"
    return REWRITINGS[template].messages[language].replace("{passage}", passage)


def training_text(template: str, passage: str, completion: str) -> str:
    """What a student trains on: passage and continuation, both parts, or the rewriting alone."""
    if template == CONTINUE:
        return passage + completion
    completion = completion.strip()
    return f"{passage}\n\n{completion}" if REWRITINGS[template].keeps_passage else completion


def _is_chinese(text: str) -> bool:
    """Whether a fifth of the characters are Chinese: statutes with figures and names are."""
    return len(_CHINESE.findall(text)) * 5 > len(text)
