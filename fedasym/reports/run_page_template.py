"""The template of the page about one run, or several side by side; `fedasym.reports.run_page` fills it."""

RUN_PAGE = """{% extends "layout" %}
{% from "macros" import figures, table %}

{% macro and_more(items) %}
{% if items | length > listed %}<p>and {{ "{:,}".format(items | length - listed) }} more, in rounds.jsonl</p>{% endif %}
{% endmacro %}

{# One row per name: each run's value, or the one that all share across their columns. #}
{% macro facts(rows, about) %}
<div class="scroll"><table class="facts">
{% if names | length > 1 %}
<thead><tr>
  <th></th>
  {% for name in names %}<th scope="col">{{ name }}</th>{% endfor %}
  {% if about %}<th></th>{% endif %}
</tr></thead>
{% endif %}
<tbody>
{% for name, values in rows %}
{% set differs = values | length > 1 %}
<tr{% if differs %} class="differs"{% endif %}><th scope="row">{{ name }}{% if differs %} ≠{% endif %}</th>
  {% for value in values %}
  <td{% if not differs %} colspan="{{ names | length }}"{% endif %}>{{ value }}</td>
  {% endfor %}
  {% if about %}<td class="about">{{ about.get(name, "") }}</td>{% endif %}
</tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}

{% block body %}
<p class="lead">{{ lead }}</p>
{{ table(comparison) }}

{% if rejections %}
<section class="warning">
<h2>{{ "{:,}".format(rejections | length) }} of {{ "{:,}".format(asked) }} replies did not count</h2>
<table>
<thead><tr><th>run</th><th>round</th><th>client</th><th>reason</th></tr></thead>
<tbody>
{% for name, round, client, reason in rejections[:listed] %}
<tr><td>{{ name }}</td><td>{{ round }}</td><td>{{ client }}</td><td>{{ reason }}</td></tr>
{% endfor %}
</tbody></table>
{{ and_more(rejections) }}
</section>
{% else %}
<p class="note">Every reply asked for came and was valid: {{ "{0:,} of {0:,}".format(asked) }}.</p>
{% endif %}

{% if warnings %}
<h2>Warnings</h2>
<ul>
{% for name, round, text in warnings[:listed] %}
<li>{{ name }}, round {{ round }}: {{ text }}</li>
{% endfor %}
</ul>
{{ and_more(warnings) }}
{% endif %}

<h2>Curves and clients</h2>
{{ figures(drawn, wide="clients") }}

{% if examples %}
<h2>Held-out examples</h2>
{% for name, entries in examples %}
{% if names | length > 1 %}<p>{{ name }}:</p>{% endif %}
<div class="scroll"><table class="examples">
<thead><tr><th>given</th><th>expected</th><th>before training (B = 0)</th><th>after</th></tr></thead>
<tbody>
{% for entry in entries %}
<tr>
  <td>{{ entry.question }}
  {% if "picture" in entry %}<img alt="" src="data:image/png;base64,{{ entry.picture }}">{% endif %}</td>
  {% for said in (entry.expected, entry.before, entry.after) %}
  <td{% if said | length < 20 %} class="short"{% endif %}>{{ said }}</td>
  {% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
{% endfor %}
<p class="note">Drawn by the seed; texts are cut. They illustrate, and the numbers above judge.</p>
{% endif %}

<h2>Run it again</h2>
{% for name, command in commands %}
{% if names | length > 1 %}<p>{{ name }}:</p>{% endif %}
<pre>{{ command }}</pre>
{% endfor %}

<h2>Settings</h2>
{{ facts(settings, about) }}

<h2>Where the numbers come from</h2>
{{ facts(origins, {}) }}
{% endblock %}
"""
