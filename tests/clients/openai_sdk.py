"""What the openai SDK does with a server: openai_sdk.py URL MODEL. Started by run."""

import json
import sys

import openai


def main() -> None:
    url, model = sys.argv[1:]
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
    assert [card.id for card in client.models.list()] == [model]
    assert client.models.retrieve(model).id == model

    question = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    whole = client.chat.completions.create(model=model, messages=question, temperature=0, max_tokens=20)
    text = whole.choices[0].message.content
    assert "Paris" in text, text
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens

    streamed, usage, logprobs = "", None, []
    for chunk in client.chat.completions.create(model=model, messages=question, temperature=0, max_tokens=20, stream=True,
                                                stream_options={"include_usage": True}, logprobs=True, top_logprobs=2):
        for choice in chunk.choices:
            streamed += choice.delta.content or ""
            logprobs += choice.logprobs.content if choice.logprobs else []
        usage = chunk.usage or usage
    assert streamed == text, (streamed, text)
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert "".join(entry.token for entry in logprobs).startswith(text), logprobs
    assert all(len(entry.top_logprobs) == 2 for entry in logprobs)

    completion = client.completions.create(model=model, prompt=["One, two,", "A, B,"], n=2, max_tokens=3, logprobs=1)
    assert [choice.index for choice in completion.choices] == [0, 1, 2, 3]
    assert all(len(choice.logprobs.tokens) == 3 for choice in completion.choices)

    person = {"type": "object", "additionalProperties": False, "required": ["name", "age"],
              "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "maximum": 150}}}
    described = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Invent a person."}], max_tokens=100,
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": person, "strict": True}})
    assert described.choices[0].finish_reason == "stop", described
    answer = json.loads(described.choices[0].message.content)
    assert answer.keys() == {"name", "age"} and isinstance(answer["name"], str) and answer["age"] <= 150, answer
    anything = client.chat.completions.create(model=model, messages=question, response_format={"type": "json_object"},
                                              temperature=0, max_tokens=200)
    if anything.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(anything.choices[0].message.content), dict), anything
    assert anything.choices[0].message.content.startswith("{"), anything
    chosen = client.chat.completions.create(model=model, messages=question, max_tokens=20,
                                            extra_body={"structured_outputs": {"choice": ["Paris", "London"]}})
    assert chosen.choices[0].message.content in ("Paris", "London"), chosen

    try:
        client.chat.completions.create(model="another", messages=question)
        raise AssertionError("another model was served")
    except openai.NotFoundError as error:
        assert error.code == "model_not_found" and error.param == "model"
    try:
        client.chat.completions.create(model=model, messages=question, temperature=-1)
        raise AssertionError("a wrong temperature was taken")
    except openai.BadRequestError as error:
        assert error.param == "temperature"
    try:
        client.chat.completions.create(model=model, messages=question, response_format={
            "type": "json_schema", "json_schema": {"name": "wrong", "schema": {"type": "objekt"}}})
        raise AssertionError("a wrong schema was taken")
    except openai.BadRequestError as error:
        assert error.param == "response_format" and "objekt" in error.message, error


if __name__ == "__main__":
    main()
