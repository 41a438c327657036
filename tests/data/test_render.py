import copy
from pathlib import Path

import pytest

from mote.data.conversation import Conversation, Turn
from mote.data.render import render, renderer
from mote.errors import DataError

PARTS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Like SmolLM2-Instruct's: text only, and a system prompt where there is none.
WITH_SYSTEM = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FORGETFUL = "{% for m in messages[-2:] %}{{ '<|im_start|>' + m['role'] + m['content'] + '<|im_end|>' }}{% endfor %}"
ENDLESS = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.fixture(params=[PARTS, WITH_SYSTEM], ids=["parts", "system"])
def chat(request, tokenizer):
    return templated(tokenizer, request.param)


def templated(tokenizer, template: str):
    copied = copy.deepcopy(tokenizer)
    copied.chat_template = template
    return copied


def talk(*turns: tuple[str, str], image: bool = True) -> Conversation:
    return Conversation(
        id="1",
        image=Path("a.png") if image else None,
        turns=tuple(Turn(question=q, answer=a) for q, a in turns),
        where="a.jsonl:3",
    )


TWO = talk(("What is in the picture?", "a cat"), ("And how many?", "two cats, one dog"))


def test_the_ids_are_the_chat_templates_text_with_image_tokens_expanded(chat) -> None:
    rendered = render(TWO, chat, num_image_tokens=4)

    text = chat.decode(rendered.ids)
    assert text.count("<image>") == 4
    assert (
        "<image><image><image><image>\nWhat is in the picture?<|im_end|>\n<|im_start|>assistant\na cat<|im_end|>"
        in text
    )
    assert text.endswith("<|im_start|>assistant\ntwo cats, one dog<|im_end|>\n")
    assert text.startswith("<|im_start|>system") == (chat.chat_template == WITH_SYSTEM)
    assert [chat.decode([rendered.ids[slot]]) for slot in rendered.image_slots] == ["<image>"] * 4


def test_loss_is_on_answers_and_their_end_of_turn_and_nothing_else(chat) -> None:
    rendered = render(TWO, chat, num_image_tokens=4)

    learned = [token for token, on in zip(rendered.ids, rendered.loss_mask, strict=True) if on]
    assert chat.decode(learned) == "a cat<|im_end|>two cats, one dog<|im_end|>"


@pytest.mark.parametrize("turns", [1, 2])
def test_the_generation_prompt_is_the_training_prefix_token_for_token(chat, turns: int) -> None:
    conversation = TWO.first(turns)
    trained = render(conversation, chat, num_image_tokens=4)
    prompt = renderer(chat, num_image_tokens=4).prompt(conversation)

    first_answer_token = len(prompt)
    assert trained.ids[:first_answer_token] == prompt.ids
    assert trained.loss_mask[first_answer_token]
    assert not trained.loss_mask[first_answer_token - 1]
    assert not any(prompt.loss_mask)
    assert prompt.image_slots == trained.image_slots


def test_the_prompt_is_what_transformers_own_processor_gives(tokenizer) -> None:
    from PIL import Image
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=copy.deepcopy(tokenizer),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=PARTS,
    )
    question = [{"type": "image", "image": Image.new("RGB", (28, 28))}, {"type": "text", "text": "What is it?"}]
    theirs = processor.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=True, return_dict=True
    )

    ours = renderer(processor, num_image_tokens=4).prompt(talk(("What is it?", "a cat")))

    assert list(ours.ids) == list(theirs["input_ids"][0])


def test_a_text_only_row_has_no_image_slot(chat) -> None:
    rendered = render(talk(("Hi", "hello"), image=False), chat, num_image_tokens=4)

    assert rendered.image_slots == ()
    assert "<image>" not in chat.decode(rendered.ids)


def test_another_answer_changes_nothing_before_it(chat) -> None:
    one = render(TWO, chat, num_image_tokens=4)
    other = render(TWO.with_answer("dog"), chat, num_image_tokens=4)
    prefix = len(renderer(chat, num_image_tokens=4).prompt(TWO))

    assert one.ids[:prefix] == other.ids[:prefix]
    assert one.ids != other.ids


def test_a_changed_chat_template_is_not_rendered_by_the_old_one(tokenizer) -> None:
    chat = templated(tokenizer, PARTS)
    before = render(TWO, chat, num_image_tokens=4)
    chat.chat_template = WITH_SYSTEM

    assert len(render(TWO, chat, num_image_tokens=4)) > len(before)


def test_cutting_keeps_an_answer_or_is_an_error(chat) -> None:
    whole = render(TWO, chat, num_image_tokens=4)
    cut = render(TWO, chat, num_image_tokens=4, max_length=len(whole) - 3)

    assert cut.ids == whole.ids[:-3]
    assert len(cut.loss_mask) == len(cut.ids)
    with pytest.raises(DataError, match=r"a\.jsonl:3: .* no answer fits into max_length=8"):
        render(TWO, chat, num_image_tokens=4, max_length=8)


@pytest.mark.parametrize("token", ["<image>", "<|im_end|>", "<|im_start|>"])
def test_text_that_spells_a_special_token_is_refused(chat, token: str) -> None:
    for bad in (talk((f"a {token} b", "cat")), talk(("What?", f"cat {token}"))):
        with pytest.raises(DataError, match=r"a\.jsonl:3: the text holds"):
            render(bad, chat, num_image_tokens=4)


@pytest.mark.parametrize(
    ("template", "message"),
    [(FORGETFUL, "rewrites earlier turns"), (ENDLESS, "without a special token"), (None, "no chat template")],
)
def test_templates_that_cannot_be_trained_with_are_refused(tokenizer, template: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        render(TWO, templated(tokenizer, template), num_image_tokens=4)


def test_an_image_token_that_is_several_tokens_is_refused(tokenizer) -> None:
    with pytest.raises(DataError, match="0 image tokens after rendering, expected 4"):
        render(TWO, templated(tokenizer, WITH_SYSTEM), num_image_tokens=4, image_token="<picture>")
