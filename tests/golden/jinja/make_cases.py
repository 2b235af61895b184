#!/usr/bin/env python3
"""Renders templates with the real jinja2, set up as chat templates are rendered, for model/jinja/jinja_test.cc.

    make_cases.py               writes cases.json
    make_cases.py --check       exit code 1 unless cases.json holds what jinja2 renders today

The templates are our own; "like_*" ones use the constructs of the published template that they are named after.
"""

import json
import pathlib
import sys

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  Hi there!\n"},
    {"role": "assistant", "content": "<think>hm</think>Hello. "},
    {"role": "user", "content": "Is 1 < 2 & 'so' on?"},
]
NO_SYSTEM = CHAT[1:]
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds é", "parameters": {
    "type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}, "required": ["a", "b"]}}}]
CALLS = [
    {"role": "user", "content": "1+2?"},
    {"role": "assistant", "content": None, "tool_calls": [
        {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2.5}}}]},
    {"role": "tool", "name": "add", "content": "3.5"},
]
BASE = {"messages": CHAT, "bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
PLAIN = dict(BASE, messages=NO_SYSTEM)

# name -> (template, variables)
CASES = {
    "chained_comparisons": ("{{ 3 > 2 > 1 }}{{ 1 < 3 < 2 }}{{ 1 == 1 in [1, 2] }}{{ 1 < 2 not in [3] }}{{ 1 != 2 != 1 }}{{ not 1 < 2 }}", BASE),
    # --- constructs of published chat templates
    "like_chatml": ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}", BASE),
    "like_smollm2": ("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}", PLAIN),
    "like_llama2": ("{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}", BASE),
    "like_llama3": ("{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}", BASE),
    "like_llama31_tools": ("""{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\n\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("one call at a time") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", ' }}{{- '"parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}" }}
    {%- else %}
        {{- "ipython\n\n" }}{{- message.content }}{{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
""", dict(BASE, messages=CALLS, tools=TOOLS)),
    "like_mistral": ("{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}", PLAIN),
    "like_zephyr": ("{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}", BASE),
    "like_gemma": ("{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}", PLAIN),
    "like_phi3": ("{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}", BASE),
    "like_qwen25_tools": ("""{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are Q.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}{{- tool_call.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}{{- message.content }}{{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
""", dict(BASE, messages=CALLS, tools=TOOLS)),
    "like_qwen3": ("""{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in message.content %}
                {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
                {%- set reasoning_content = message.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {{- '<think>' + reasoning_content.strip('\\n') + '</think>' + content.lstrip('\\n') }}
        {%- else %}
            {{- message.role + ':' + content }}
        {%- endif %}
    {%- else %}
        {{- message.role + ':' + message.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}""", dict(BASE, enable_thinking=False)),
    "like_deepseek_r1": ("{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<|User|>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' and message['content'] is not none %}{%- if ns.is_tool %}{{'<|tool_outputs_end|>' + message['content'] + '<|end|>'}}{%- set ns.is_tool = false -%}{%- else %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{'<|Assistant|>' + content + '<|end|>'}}{%- endif %}{%- endif %}{%- endfor -%}{% if ns.is_tool %}{{'<|tool_outputs_end|>'}}{% endif %}{% if add_generation_prompt and not ns.is_tool %}{{'<|Assistant|>'}}{% endif %}", BASE),
    "like_command_r": ("{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% elif false == true %}{% set loop_messages = messages %}{% endif %}{% if system_message != false %}{{ '<|S|>' + system_message + '<|E|>' }}{% endif %}{% for message in loop_messages %}{% set content = message['content'] %}{% if message['role'] == 'user' %}{{ '<|U|>' + content.strip() + '<|E|>' }}{% elif message['role'] == 'assistant' %}{{ '<|C|>'  + content.strip() + '<|E|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|C|>' }}{% endif %}", BASE),
    "like_falcon": ("{% for message in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}{% if message['role'] == 'system' %}{{ 'System: ' }}{% elif message['role'] == 'user' %}{{ 'User: ' }}{% elif message['role'] == 'assistant' %}{{ 'Falcon: ' }}{% endif %}{{ message['content'] }}{% endfor %}{% if add_generation_prompt %}{{ '\n' + 'Falcon:' }}{% endif %}", BASE),
    "like_granite_macro": ("""{%- macro render_turn(role, content, close=true) -%}
<|{{ role }}|>{{ content | trim }}{% if close %}<|end|>{% endif %}
{%- endmacro -%}
{%- for m in messages %}{{ render_turn(m.role, m.content) }}{% endfor %}{{ render_turn('assistant', '', close=false) }}""", BASE),
    "like_hermes_items": ("{%- for tool in tools %}{%- set f = tool.function %}{{ f.name }}({% for key, value in f.parameters.properties.items() %}{{ key }}: {{ value.type }}{{ ', ' if not loop.last }}{% endfor %}) required={{ f.parameters.required | join(' and ') }};{%- endfor %}", dict(BASE, tools=TOOLS)),
    "like_vicuna_generation": ("{% for message in messages %}{% if message.role == 'assistant' %}{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}{% else %}{{ message.role | upper }}: {{ message.content }}{% endif %}{% endfor %}", BASE),
    "like_yi_selectattr": ("{% set sys = messages | selectattr('role', 'equalto', 'system') | list %}{{ sys | length }}{% for m in messages | rejectattr('role', 'equalto', 'system') %}[{{ m.role }}]{% endfor %}", BASE),
    # --- single features
    "whitespace_trim": ("a  {{- 1 -}}  b {%- if true -%}  c  {%- endif -%}  d", {}),
    "block_newlines": ("{% if true %}\nx\n{% endif %}\n{% for i in [1,2] %}\n  {% if i == 1 %}\n  one\n  {% endif %}\n{% endfor %}\nend\n", {}),
    "comments": ("a{# no #}b\n{#- trimmed -#}\n c", {}),
    "arithmetic": ("{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 2 ** 10 }} {{ 7 / 2 }} {{ 4 / 2 }} {{ 1.5 + 1 }} {{ 2 * 3 - 1 }}", {}),
    "precedence": ("{{ 1 + 2 * 3 }} {{ (1 + 2) * 3 }} {{ not true or true }} {{ 1 if 2 > 1 else 0 }} {{ 'a' ~ 1 ~ 2 * 3 }} {{ -2 ** 2 }}", {}),
    "comparisons": ("{{ 1 == 1.0 }} {{ 'a' < 'b' }} {{ 1 in [1, 2] }} {{ 3 not in [1, 2] }} {{ 'el' in 'hello' }} {{ none == none }} {{ 1 != 2 }} {{ 2 >= 2 }}", {}),
    "strings": ("{{ 'Hello World'.upper() }} {{ 'x'.lower() }} {{ ' a b '.strip() }}|{{ 'xxaxx'.strip('x') }} {{ 'a,b,c'.split(',') }} {{ 'a b  c'.split() }} {{ 'hello world'.title() }} {{ 'abc'.replace('b', 'x') }} {{ 'ab' 'cd' }} {{ 'abc'.startswith('ab') }} {{ 'abc'.endswith(('x', 'c')) }} {{ 'a-b-c'.rsplit('-', 1) }} {{ 'banana'.count('an') }} {{ 'banana'.find('nan') }} {{ '-'.join(['a', 'b']) if false else '' }}", {}),
    "string_escapes": ("{{ 'a\\nb\\tc\\'d\\\\e' }} {{ \"\\u00e9\" }}", {}),
    "lists": ("{{ [1, 'a', none, true, 1.5] }} {{ [3, 1, 2] | sort }} {{ [1, 2, 3][0] }} {{ [1, 2, 3][-1] }} {{ [1, 2, 3][1:] }} {{ [1, 2, 3][::-1] }} {{ 'hello'[1:3] }} {{ [1] + [2] }} {{ (1, 2) }} {{ (1,) }} {{ [] }}", {}),
    "dicts": ("{{ {'a': 1, 'b': [2]} }} {{ {'a': 1}.a }} {{ {'a': 1}['a'] }} {{ {'a': 1}.get('b', 5) }} {{ {'b': 1, 'a': 2} | dictsort }} {{ {'a': 1}.keys() | list }} {{ {'a': 1}.values() | list }} {{ {'a': 1} | items | list }} {{ {} | length }}", {}),
    "loop_variables": ("{% for x in 'abc' %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.cycle('x', 'y') }};{% endfor %}", {}),
    "loop_filter_else": ("{% for x in range(5) if x % 2 %}{{ x }}{% else %}none{% endfor %}{% for x in [] %}{{ x }}{% else %}none{% endfor %}", {}),
    "loop_controls": ("{% for x in range(10) %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 5 %}{% break %}{% endif %}{{ x }}{% endfor %}", {}),
    "loop_unpack": ("{% for a, b in [(1, 2), (3, 4)] %}{{ a }}-{{ b }};{% endfor %}{% set x, y = 5, 6 %}{{ x + y }}", {}),
    "loop_scope": ("{% set x = 1 %}{% for i in [1] %}{% set x = 2 %}{{ x }}{% endfor %}{{ x }}{% if true %}{% set x = 3 %}{% endif %}{{ x }}", {}),
    "namespace": ("{% set ns = namespace(n=0) %}{% for i in range(4) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", {}),
    "set_block": ("{% set x %}a{{ 1 }}b{% endset %}[{{ x }}]", {}),
    "macro_defaults": ("{% macro f(a, b=2) %}{{ a }}+{{ b }}{% endmacro %}{{ f(1) }} {{ f(1, 3) }} {{ f(b=4, a=0) }}", {}),
    "tests": ("{{ x is defined }} {{ y is defined }} {{ y is not defined }} {{ none is none }} {{ 'a' is string }} {{ 1 is number }} {{ 1.0 is float }} {{ 1 is integer }} {{ {} is mapping }} {{ [] is sequence }} {{ [] is iterable }} {{ true is boolean }} {{ 3 is odd }} {{ 4 is even }} {{ 9 is divisibleby 3 }} {{ 1 is eq 1 }} {{ true is true }} {{ false is false }} {{ 2 is in [1, 2] }}", {"x": 1}),
    "filters": ("{{ 'abc' | length }} {{ 'aBc' | capitalize }} {{ [1, 2] | first }} {{ [1, 2] | last }} {{ [1, 2] | sum }} {{ [1, 1, 2] | unique | list }} {{ [1, 2] | reverse | list }} {{ 'abc' | reverse }} {{ '5' | int + 1 }} {{ '1.5' | float }} {{ 3.7 | int }} {{ -3 | abs }} {{ 2.567 | round(2) }} {{ [3, 1] | min }} {{ [3, 1] | max }} {{ 5 | string ~ 'x' }} {{ y | default('d') }} {{ '' | default('e', true) }} {{ ['a', 'b'] | map('upper') | join('-') }} {{ [{'a': 1}, {'a': 2}] | map(attribute='a') | list }} {{ [0, 1, 2] | select | list }} {{ [1, 2, 3] | reject('odd') | list }} {{ 'a b' | replace(' ', '_') }} {{ 'x' | trim }}", {}),
    "indent": ("{{ 'a\nb\n\nc' | indent(2) }}|{{ 'a\nb' | indent(2, true) }}", {}),
    "tojson": ("{{ {'a': [1, 2.5, none, true, 'x\"y\\n<é>']} | tojson }} {{ [] | tojson }} {{ {'a': {'b': 1}} | tojson(indent=2) }}", {}),
    "floats": ("{{ 1.0 }} {{ 0.1 + 0.2 }} {{ 1e3 if false else 1000.0 }} {{ 3.14159 }} {{ 100000000000000000000.0 if false else '' }}", {}),
    "conditional_without_else": ("[{{ 'x' if false }}]", {}),
    "undefined_is_empty": ("[{{ nope }}]{% if nope %}x{% else %}y{% endif %}{% for i in nope %}z{% endfor %}", {}),
    "chained": ("{{ '  Hello  '.strip().lower() | replace('l', 'L') | length }}", {}),
    "nested_access": ("{{ a.b[0].c }} {{ a['b'][0]['c'] }}", {"a": {"b": [{"c": "deep"}]}}),
    "truthiness": ("{% for x in [0, 1, '', 'a', [], [0], none, {}, 0.0] %}{{ 'T' if x else 'F' }}{% endfor %}", {}),
    "and_or_values": ("{{ 0 or 'x' }} {{ 'a' and 'b' }} {{ '' or none or 'z' }}", {}),
    "unicode": ("{{ 'héllo'[1] }} {{ 'héllo' | length }} {{ '日本語'[::-1] }}", {}),
    "dict_methods_in_loop": ("{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k in d %}{{ k }}{% endfor %}", {"d": {"x": 1, "y": 2}}),
    # --- errors: jinja2 refuses them, and so must we
    "error_raise": ("{{ raise_exception('no system role') }}", {}),
    "error_undefined_attribute": ("{{ nope.x }}", {}),
    "error_syntax": ("{% if x %}", {}),
    "error_unknown_filter": ("{{ 1 | nosuchfilter }}", {}),
    "error_add_types": ("{{ 'a' + 1 }}", {}),
    "error_call_of_text": ("{{ 'a'() }}", {}),
    "error_division": ("{{ 1 / 0 }}", {}),
    "error_unclosed": ("{{ 1 ", {}),
    "error_role_order": ("{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('bad role') }}{% endif %}{% endfor %}", BASE),
}


class Generation(jinja2.ext.Extension):
    """{% generation %}: a block that only groups, as chat templates use it."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def render(template, variables):
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                extensions=[Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(template).render(**variables)


def make_cases():
    cases = []
    for name, (template, variables) in CASES.items():
        case = {"name": name, "template": template, "variables": variables}
        try:
            case["expected"] = render(template, variables)
        except Exception:  # Whatever jinja2 raises, it refuses the template.
            case["fails"] = True
        assert case.get("fails", False) == name.startswith("error_"), name
        cases.append(case)
    return json.dumps(cases, ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    path = pathlib.Path(__file__).parent / "cases.json"
    text = make_cases()
    if sys.argv[1:] == ["--check"]:
        same = path.read_text(encoding="utf-8") == text
        print(f"{len(CASES)} cases are {'current' if same else 'not what jinja2 renders'}")
        sys.exit(0 if same else 1)
    path.write_text(text, encoding="utf-8")
