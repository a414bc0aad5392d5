"""Chat templates as models bring them: the system message, list content, what a template refuses."""

import copy
from types import SimpleNamespace

import pytest
from cai.core.errors import UserError
from cai.models.chat import chat_template

# In the manner of Qwen2.5's, Llama 3's, Gemma's and Llama Guard 3 1B's.
QWEN = (
    "{% if messages[0]['role'] == 'system' %}<|im_start|>system\n{{ messages[0]['content'] }}<|im_end|>\n"
    "{% else %}<|im_start|>system\nYou are Qwen.<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{% for m in messages %}[{{ m['role'] }}]\n\n{{ m['content'] | trim }}[end]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n\n{% endif %}"
)
GEMMA = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}<model>{% endif %}"
)
IGNORES = "{% for m in messages if m['role'] == 'user' %}Q: {{ m['content'] }}\n{% endfor %}A:"
PARTS = "{% for m in messages %}{{ m['role'] }}: {{ m['content'][0]['text'] }}\n{% endfor %}?"
ASKED = {"role": "user", "content": "Why?"}
TOLD = {"role": "system", "content": "Be brief."}


@pytest.fixture(scope="module")
def tokenizer(base):
    return copy.deepcopy(base.tokenizer)


def template(tokenizer, text):
    tokenizer.chat_template = text
    return chat_template(SimpleNamespace(kind="instruct", name="some model"), tokenizer)


@pytest.mark.parametrize(("text", "system"), [
    (QWEN, "You are Qwen."), (LLAMA, None), (GEMMA, None), (IGNORES, None), (PARTS, None)
])  # fmt: skip
def test_the_system_message_that_a_template_adds_is_known(text, system, tokenizer):
    assert template(tokenizer, text).system == system


def test_a_system_message_takes_its_place_and_that_of_the_templates_own(tokenizer):
    qwen = template(tokenizer, QWEN)
    alone, told = qwen.render([ASKED]), qwen.render([TOLD, ASKED])
    assert alone.startswith("<|im_start|>system\nYou are Qwen.<|im_end|>\n<|im_start|>user\nWhy?")
    assert told == alone.replace("You are Qwen.", "Be brief.")
    assert template(tokenizer, LLAMA).render([TOLD, ASKED]).startswith("[system]\n\nBe brief.[end][user]")


@pytest.mark.parametrize("text", [GEMMA, IGNORES])
def test_where_there_is_no_place_it_goes_to_the_users_head(text, tokenizer):
    """One template raises, the other leaves it out without a word."""
    chat = template(tokenizer, text)
    assert "Be brief.\n\nWhy?" in chat.render([TOLD, ASKED]) and "Be brief." not in chat.render([ASKED])
    with pytest.raises(UserError, match="some model has no place for a system message, and no user message"):
        chat.render([ASKED, TOLD])


def test_a_refused_conversation_is_a_sentence(tokenizer):
    with pytest.raises(UserError, match="some model refuses a conversation: Conversation roles must altern"):
        template(tokenizer, GEMMA).render([ASKED, ASKED])


@pytest.mark.parametrize("text", [QWEN, LLAMA, GEMMA, PARTS])
def test_list_content_is_its_text(text, tokenizer):
    chat = template(tokenizer, text)
    parts = [{"type": "text", "text": "Why"}, {"type": "text", "text": "not?"}]
    joined = chat.render([{"role": "user", "content": "Why\nnot?"}])
    assert chat.render([{"role": "user", "content": parts}]) == joined and "Why\nnot?" in joined
    with pytest.raises(UserError, match="some model reads text only: a message holds a part of type 'image'"):
        chat.render([{"role": "user", "content": [*parts, {"type": "image", "image": "x"}]}])


def test_a_template_that_says_nothing_and_none_at_all_are_refused(tokenizer):
    with pytest.raises(UserError, match="some model leaves out what a user says"):
        template(tokenizer, "Hello.")
    with pytest.raises(UserError, match="some model brings no chat template"):
        template(tokenizer, None)
    assert chat_template(SimpleNamespace(kind="base", name="some model"), tokenizer) is None


# ---- the template that is saved with an adapter ----


@pytest.fixture
def trained(tokenizer):
    """As transformers renders the template of the training format."""
    from cai.prompts.training_format import TRAINING_CHAT_TEMPLATE

    tokenizer.chat_template = TRAINING_CHAT_TEMPLATE
    return lambda *messages, **how: tokenizer.apply_chat_template(
        list(messages), tokenize=False, **({"add_generation_prompt": True} | how)
    )


def test_the_training_format_merges_a_system_message_into_the_next_instruction(trained):
    from cai.prompts.training_format import training_prompt

    merged = training_prompt("Be brief.\n\nWhy?")
    assert trained(TOLD, ASKED) == merged == trained(TOLD | {"role": "developer"}, ASKED)
    again = trained(TOLD, ASKED, {"role": "assistant", "content": "So."}, ASKED)
    assert again == merged + " So.<|endoftext|>" + training_prompt("Why?")


def test_the_training_format_reads_list_content(trained):
    parts = [{"type": "text", "text": "Why"}, {"type": "text", "text": " not? "}]
    assert trained(ASKED | {"content": parts}) == trained(ASKED | {"content": "Why\n not? "})
    answer = {"role": "assistant", "content": parts[:1]}
    assert trained(ASKED, answer, add_generation_prompt=False).endswith("\nResponse: Why<|endoftext|>")


@pytest.mark.parametrize(("message", "why"), [
    (ASKED | {"content": [{"type": "image_url", "image_url": {}}]}, "reads text only: .* of type image_url"),
    ({"role": "tool", "content": "4"}, "not trained on messages of the role tool"),
    (TOLD, "a system message is read with the user message after it: there is none"),
])  # fmt: skip
def test_the_training_format_refuses_what_it_cannot_say(message, why, trained):
    from jinja2 import TemplateError

    with pytest.raises(TemplateError, match=why):
        trained(message)
